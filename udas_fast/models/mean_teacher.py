"""Mean teacher: the exponential moving average of a network, which labels images for it or takes its place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MeanTeacher(nn.Module):
    """Exponential moving average of a network (Tarvainen and Valpola, NeurIPS 2017), always in evaluation mode.

    After the network's step t = 0, 1, …: teacher = α·teacher + (1 − α)·network, α = min(1 − 1/(t + 1), decay), as in
    DACS's code: a copy after the first step, then the plain mean of the steps so far, until ``decay`` is slower.

    Floating-point buffers, which are the statistics of batch norm, are averaged as the weights are, and labels are made
    with them, as in UniMatch V2's code. DACS and DAFormer label with the statistics of the target batch instead.
    Dropout and stochastic depth are off. Weights and count are on the device and part of ``state_dict``; nothing waits.

    Args:
        model: the network, which is copied.
        decay: largest α, below 1.
    """

    count: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(model).requires_grad_(False)
        device = next((value.device for value in model.state_dict().values()), None)
        # Optimisation steps that it followed.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        self.train(False)

    def train(self, mode: bool = True) -> MeanTeacher:
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, x: Tensor) -> object:
        """Return the averaged network's output for normalised images ``x`` ``[N, 3, H, W]``."""
        return self.network(x)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Follow ``model``, the network that was copied, after an optimisation step."""
        new = 1.0 / (self.count + 1.0)
        new = new.clamp(min=1.0 - self.decay)  # 1 − α
        self.count += 1
        averages: list[Tensor] = []
        values: list[Tensor] = []
        pairs = zip(self.network.state_dict().values(), model.state_dict().values(), strict=True)
        for average, value in pairs:
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, [new.to(average.dtype) for average in averages])
