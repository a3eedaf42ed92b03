"""Input normalisation, which belongs to a network: its weights expect it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udas_fast import ops
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


@dataclass(frozen=True)
class NetworkInput:
    """The form in which a network takes images: their normalisation, floating dtype and memory layout.

    Each method reads every pixel once and writes it once.
    """

    normalization: Normalization = IMAGENET
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def normalize(self, image: Tensor) -> Tensor:
        """Return (image / 255 - mean) / std per RGB channel of uint8 ``[N, 3, H, W]``, in this form.

        Raises:
            InputError: another dtype or shape.
        """
        if image.dtype != torch.uint8 or image.dim() != 4 or image.shape[1] != 3:
            raise bad("image", f"{image.dtype} {list(image.shape)}", "torch.uint8 [N, 3, H, W]")
        # A mix with itself in no pixel. The labels, which are mixed as well, are nobody's: a plane of the image.
        nowhere = torch.zeros(len(image), 4, dtype=torch.int32, device=image.device)
        return self.mix(image, image, image[:, 0], image[:, 0], nowhere)[0]

    def mix(
        self, inside: Tensor, outside: Tensor, inside_label: Tensor, outside_label: Tensor, region: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return image and label of :func:`udas_fast.ops.region_mix`, the image normalised and in this form."""
        return ops.region_mix(
            inside,
            outside,
            inside_label,
            outside_label,
            region,
            mean=self.normalization.mean,
            std=self.normalization.std,
            out_dtype=self.dtype,
            channels_last=self.channels_last,
        )


def normalize(image: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """Return (image / 255 - mean) / std per RGB channel of uint8 ``[N, 3, H, W]``, float32.

    normalization: of the network, from :func:`normalization_of`.

    Raises:
        InputError: another dtype or shape.
    """
    return NetworkInput(normalization).normalize(image)


def normalize_signed(image: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """Return :func:`normalize` of a float image in [-1, 1] (CycleGAN's range); gradients pass."""
    mean, std = _filled(normalization.mean, image), _filled(normalization.std, image)
    return ((image + 1) / 2 - mean) / std


def _filled(values: tuple[float, ...], image: Tensor) -> Tensor:
    """Return float32 [3, 1, 1] made on the image's device: a copy from the host would wait for the device."""
    return torch.stack([torch.full((1, 1), value, device=image.device) for value in values])
