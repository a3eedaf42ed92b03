"""Sure predictions on the target: entropy as a loss (MinEnt), and FDA's robust form of it."""

from __future__ import annotations

import torch
from torch import Tensor

from udas_fast import ops
from udas_fast.models import to_output


def target_entropy(
    output: object, size: tuple[int, int], weights: tuple[float, float], robust: float | None = None
) -> Tensor:
    """Σ weight·E over (primary, auxiliary), E from the normalised entropies e of the pixels of ``size``.

    E = mean(e) (MinEnt, Vu et al. 2019, eq. 4), or with ``robust`` = η the Charbonnier penalty
    mean((e² + 0.001²)^η), which spares sure pixels more than unsure ones (FDA, Yang and Soatto 2020, eq. 4).
    Gradients reach every head whose weight is not 0.
    """
    losses = []
    both = to_output(output)
    corners = both.align_corners
    for weight, logits in zip(weights, both, strict=True):
        if not weight or logits is None:
            continue
        if robust is None:
            loss = ops.entropy(logits, size, align_corners=corners)
        else:
            e = ops.entropy(logits, size, align_corners=corners, reduction="none")
            loss = (e.square() + 0.001**2).pow(robust).mean()
        losses.append(weight * loss)
    return torch.stack(losses).sum()
