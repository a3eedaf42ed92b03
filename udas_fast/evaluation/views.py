"""Views of images at other scales and mirrored, as teachers and evaluation use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def geometric_views(
    image: Tensor, scales: Sequence[float], flip: bool, *, antialias: bool = True
) -> list[tuple[Tensor, bool]]:
    """Return ``image`` at each of ``scales`` and, with ``flip``, mirrored at its own scale and at each of them.

    Args:
        image: normalised, floating ``[N, 3, H, W]``; it is not among the result itself.
        scales: factors of height and width; the size is rounded, at least 1.
        flip: whether there is a mirrored version of every scale (MRNet's four forwards: scales (1.25,), flip).
        antialias: of the resizing, which matters below scale 1.

    Returns:
        (view, whether it is mirrored). Logits of a scaled view cover the same image, so upsampling them to its
        size is the inverse; :func:`udas_fast.ops.pseudo_label` undoes the mirroring (``flips``).
    """
    views = []
    for scale in (1.0, *scales):
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        scaled = image
        if scale != 1.0:
            scaled = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=antialias)
            views.append((scaled, False))
        if flip:
            views.append((scaled.flip(-1), True))
    return views
