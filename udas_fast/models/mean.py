"""Several networks that answer as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from udas_fast.models.adapter import SegmentationOutput, to_output


class MeanNetwork(nn.Module):
    """The mean of the networks' primary probabilities, as logits: log(mean_k softmax_k), float32 [N, C, h, w]."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Normalised image, float [N, 3, H, W], to logits at the networks' own stride, which is the same."""
        outputs = [to_output(network(x)) for network in self.networks]
        logs = [output.primary.log_softmax(1, dtype=torch.float32) for output in outputs]
        # A constant more than the mean's logarithm, which softmax drops.
        return replace(outputs[0], primary=torch.stack(logs).logsumexp(0), auxiliary=None)
