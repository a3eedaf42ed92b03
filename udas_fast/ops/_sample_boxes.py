"""CutMix boxes for :func:`udas_fast.ops.region_mix`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from udas_fast.errors import bad
from udas_fast.ops import _check, reference


def sample_boxes(
    n: int,
    size: Sequence[int],
    *,
    alpha: float = 1.0,
    fit: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw CutMix boxes: λ ~ Beta(alpha, alpha), centre uniform, sides W·√(1−λ) and H·√(1−λ), clipped.

    (Yun et al., "CutMix", 2019, eq. 2.) They are drawn on ``device`` without waiting for it.

    Args:
        n: the number of boxes.
        size: (H, W) of the image.
        alpha: parameter of the Beta distribution, above 0; 1 is uniform.
        fit: place the box uniformly where it fits whole instead of clipping it.
        generator: of ``device``; None uses PyTorch's default.
        device: the device of the boxes; None is that of the generator, or the CPU.

    Returns:
        boxes int32 ``[n, 4]`` as x0, y0, x1, y1 in pixels (x1 and y1 outside), and float32 ``[n]``, the
        share of the image that each box covers.

    Raises:
        InputError: a negative ``n``, a size below 1, an alpha that is not finite and above 0.
    """
    if not isinstance(n, int) or not 0 <= n < _check.MOST:
        raise bad("n", n, "0 or more, below 2^30")
    fit = _check.flag("fit", fit)
    if not isinstance(generator, torch.Generator | None):
        raise bad("generator", type(generator).__name__, "a torch.Generator or None")
    height, width = _check.size(size)
    alpha = _check.positive("alpha", alpha)
    if device is None and generator is not None:
        device = generator.device
    return reference.sample_boxes(
        n, (height, width), alpha=alpha, fit=fit, generator=generator, device=device
    )
