"""Input normalisation of every model here: RGB in [0, 1], ImageNet's mean and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from udas_fast.errors import bad

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(image: Tensor) -> Tensor:
    """Return (image / 255 - MEAN) / STD per RGB channel, float32.

    image: uint8 [..., 3, H, W].

    Raises:
        InputError: another dtype or shape.
    """
    if image.dtype != torch.uint8 or image.dim() < 3 or image.shape[-3] != 3:
        raise bad("image", f"{image.dtype} {list(image.shape)}", "torch.uint8 [..., 3, H, W]")
    mean, std = _filled(MEAN, image), _filled(STD, image)
    # In place: no new memory. Not image / 255: torch divides bytes three times slower than floats.
    return image.float().div_(255).sub_(mean).div_(std)


def normalize_signed(image: Tensor) -> Tensor:
    """Return :func:`normalize` of a float image in [-1, 1] (CycleGAN's range); gradients pass."""
    return ((image + 1) / 2 - _filled(MEAN, image)) / _filled(STD, image)


def _filled(values: tuple[float, ...], image: Tensor) -> Tensor:
    """Return float32 [3, 1, 1] made on the image's device: a copy from the host would wait for the device."""
    return torch.stack([torch.full((1, 1), value, device=image.device) for value in values])
