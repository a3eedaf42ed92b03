"""Resize, random scale, random crop and flip: one geometry for an image and its label."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict, Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from torch.nn import functional

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
            raise ValueError(f"scale: found ({low:g}, {high:g}), expected (lowest, highest)")
        if self.crop is None and low != high:
            raise ValueError(
                "crop: found None, expected (H, W), as a random scale gives images of many sizes"
            )
        return self

    def place(self, rng: np.random.Generator) -> Placement:
        """Draw what happens to one image.

        Always takes four numbers from ``rng``, so that an option turned off does not change the others.
        """
        factor, *where, mirror = rng.random(4)
        factor = self.scale[0] + factor * (self.scale[1] - self.scale[0])
        size = max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor))
        crop = self.crop or size
        # The first pixel that is cut out; below 0 where the image is smaller than the crop.
        start = [
            int(part * (abs(have - want) + 1)) * (1 if have > want else -1)
            for have, want, part in zip(size, crop, where, strict=True)
        ]
        return Placement(size, (start[0], start[1]), crop, self.flip and bool(mirror < 0.5))

    def apply(
        self, image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """:meth:`place` and :meth:`Placement.apply` in one."""
        return self.place(rng).apply(image, label)


@plain_dataclass(frozen=True)
class Placement:
    """The geometry of one image: resized to ``size``, cut from ``start`` to ``start + crop``, then mirrored.

    All are (height, width) in pixels; a cut may reach beyond the image.
    """

    size: tuple[int, int]
    start: tuple[int, int]
    crop: tuple[int, int]
    flip: bool

    def apply(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Transform ``image`` uint8 ``[H, W, 3]`` (bilinear) and ``label`` uint8 ``[H, W]`` (nearest) alike."""

        def transform(pixels: np.ndarray, method: Image.Resampling, fill: int) -> np.ndarray:
            pixels = _cut(resize(pixels, self.size, method), self.start, self.crop, fill)
            return np.ascontiguousarray(pixels[:, ::-1] if self.flip else pixels)

        image = transform(image, Image.Resampling.BILINEAR, 0)
        if label is not None:
            label = transform(label, Image.Resampling.NEAREST, IGNORE)
        return image, label

    def nearest(self, native: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The same for a label of size ``native`` as tables: the row and the column of each pixel before mirroring.

        int32 ``[crop height]`` and ``[crop width]``; what lies beyond the image is ``native``, the index after
        the last. Equal to :meth:`apply` in every pixel, ties included.
        """
        tables = []
        for have, size, start, crop in zip(native, self.size, self.start, self.crop, strict=True):
            # Pillow adds the step up pixel by pixel, so the rounding errors of a sum decide the ties.
            steps = np.full(size, have / size)
            steps[0] *= 0.5
            source = steps.cumsum().astype(np.int32) if size != have else np.arange(size, dtype=np.int32)
            expected = np.arange(start, start + crop)
            inside = (expected >= 0) & (expected < size)
            tables.append(np.where(inside, source[expected.clip(0, size - 1)], np.int32(have)))
        return tables[0], tables[1]

    def count(self, mask: np.ndarray) -> int:
        """In how many pixels a label after :meth:`apply` shows a pixel of ``mask``, bool ``[H, W]`` of its size."""
        times = [
            np.bincount(table, minlength=have + 1)
            for table, have in zip(self.nearest(mask.shape), mask.shape, strict=True)
        ]
        y, x = mask.nonzero()
        return int(times[0][y] @ times[1][x])


def resize(pixels: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """uint8 to ``size``: bilinear ``[H, W, 3]``, averaging when it shrinks, or nearest ``[H, W]`` as Pillow's."""
    if pixels.shape[:2] == size:
        return pixels
    if method is Image.Resampling.NEAREST:
        return np.array(Image.fromarray(pixels).resize(size[::-1], method))
    # Within one grey level of Pillow's, in a tenth of the time. In this order of [None] and permute torch knows the
    # layout for channels_last and keeps it; in the other it repacks the result.
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(image, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _cut(pixels: np.ndarray, start: tuple[int, int], size: tuple[int, int], fill: int) -> np.ndarray:
    """Cut ``size`` out from ``start`` on, filled where ``pixels`` end."""
    if pixels.shape[:2] == size and start == (0, 0):
        return pixels
    out = np.full(size + pixels.shape[2:], fill, pixels.dtype)
    source, target = [], []
    for have, first, want in zip(pixels.shape, start, size, strict=False):
        begin, end = max(first, 0), min(first + want, have)
        source.append(slice(begin, end))
        target.append(slice(begin - first, end - first))
    out[tuple(target)] = pixels[tuple(source)]
    return out
