"""Resize, random scale, random crop and flip: one geometry for an image and its label."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from udas_fast.data.types import IGNORE

Size = tuple[PositiveInt, PositiveInt]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Geometry:
    """What happens to the shape of every training image; all sizes are (H, W).

    The image is resized to ``size`` times a factor drawn uniformly from ``scale``, then ``crop`` is cut out
    at a random place (parts beyond the image are black, and 255 in the label), then mirrored with
    probability 0.5 if ``flip``. Raises pydantic's ValidationError, a ValueError, for other values.
    """

    size: Size
    scale: tuple[Factor, Factor] = (1.0, 1.0)
    crop: Size | None = None
    flip: bool = Field(default=False, strict=True)

    @model_validator(mode="after")
    def _check(self) -> Geometry:
        low, high = self.scale
        if low > high:
            raise ValueError(f"scale: found ({low:g}, {high:g}), wanted (lowest, highest)")
        if self.crop is None and low != high:
            raise ValueError("crop: found None, wanted (H, W), as a random scale gives images of many sizes")
        return self

    def apply(
        self, image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Transform ``image`` uint8 ``[H, W, 3]`` (bilinear) and ``label`` uint8 ``[H, W]`` (nearest) alike.

        Always takes four numbers from ``rng``, so that an option turned off does not change the others.
        """
        factor, top, left, mirror = rng.random(4)
        factor = self.scale[0] + factor * (self.scale[1] - self.scale[0])
        height, width = (max(1, round(side * factor)) for side in self.size)
        flip = self.flip and bool(mirror < 0.5)

        def transform(pixels: np.ndarray, method: Image.Resampling, fill: int) -> np.ndarray:
            pixels = resize(pixels, (height, width), method)
            if self.crop is not None:
                pixels = _crop(pixels, self.crop, (top, left), fill)
            return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)

        image = transform(image, Image.Resampling.BILINEAR, 0)
        if label is not None:
            label = transform(label, Image.Resampling.NEAREST, IGNORE)
        return image, label


def resize(pixels: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """uint8 ``[H, W]`` or ``[H, W, 3]`` to ``size``; Pillow's bilinear averages when it shrinks."""
    if pixels.shape[:2] == size:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size[::-1], method))


def _crop(pixels: np.ndarray, size: tuple[int, int], place: tuple[float, float], fill: int) -> np.ndarray:
    """Cut ``size`` out at ``place`` (0..1 of the free play, down and right), filled where ``pixels`` end."""
    out = np.full(size + pixels.shape[2:], fill, pixels.dtype)
    source, target = [], []
    for have, want, where in zip(pixels.shape, size, place, strict=False):
        offset = int(where * (abs(have - want) + 1))
        length = min(have, want)
        source.append(slice(offset, offset + length) if have > want else slice(0, length))
        target.append(slice(0, length) if have > want else slice(offset, offset + length))
    out[tuple(target)] = pixels[tuple(source)]
    return out
