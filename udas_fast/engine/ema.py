"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """A copy of ``model`` that follows it: after step t, average = d·average + (1 − d)·model.

    d = min(decay, 1 − 1/t): the plain mean of the first steps, until ``decay`` is the slower one (Tarvainen and
    Valpola, NeurIPS 2017; DACS's code). Floating-point buffers, which are the statistics of batch norm, are
    averaged as the weights are, so that they fit them; counters are copied. Nothing waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in ``model`` after its optimisation step number ``step``, counted from 1."""
        new = 1.0 - min(self.decay, 1.0 - 1.0 / step)
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, new)
