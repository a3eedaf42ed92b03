"""Input normalisation, which belongs to a network: its weights expect it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udas_fast.config import config_dataclass
from udas_fast.errors import bad

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@config_dataclass
class Normalization:
    """(x - mean) / std per channel of RGB in [0, 1]; the default is ImageNet's, as torchvision's weights expect."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


IMAGENET = Normalization()
#: (x - 127) / 128 of RGB in 0 to 255, as TensorFlow's EfficientNet-Lite was trained.
TENSORFLOW = Normalization((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))


def normalization_of(model: nn.Module) -> Normalization:
    """Return the ``normalization`` of a network, or ImageNet's for a user's own network that has none."""
    found = getattr(model, "normalization", IMAGENET)
    if not isinstance(found, Normalization):
        raise bad(f"normalization of {type(model).__name__}", found, "a udas_fast.models.Normalization")
    return found


def normalize(image: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """Return (image / 255 - mean) / std per RGB channel, float32.

    image: uint8 [..., 3, H, W]; normalization: of the network, from :func:`normalization_of`.

    Raises:
        InputError: another dtype or shape.
    """
    if image.dtype != torch.uint8 or image.dim() < 3 or image.shape[-3] != 3:
        raise bad("image", f"{image.dtype} {list(image.shape)}", "torch.uint8 [..., 3, H, W]")
    mean, std = _filled(normalization.mean, image), _filled(normalization.std, image)
    # In place: no new memory. Not image / 255: torch divides bytes three times slower than floats.
    return image.float().div_(255).sub_(mean).div_(std)


def normalize_signed(image: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """Return :func:`normalize` of a float image in [-1, 1] (CycleGAN's range); gradients pass."""
    mean, std = _filled(normalization.mean, image), _filled(normalization.std, image)
    return ((image + 1) / 2 - mean) / std


def _filled(values: tuple[float, ...], image: Tensor) -> Tensor:
    """Return float32 [3, 1, 1] made on the image's device: a copy from the host would wait for the device."""
    return torch.stack([torch.full((1, 1), value, device=image.device) for value in values])
