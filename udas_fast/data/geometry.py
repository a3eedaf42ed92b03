"""Resize, random scale, random crop and flip: one geometry for an image and its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch.nn import functional

from udas_fast.config import Side, config_dataclass
from udas_fast.data.classes import IGNORE
from udas_fast.errors import bad

Size = tuple[Side, Side]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@config_dataclass
class Geometry:
    """Distribution of the geometric augmentation of training images; all sizes are (H, W).

    The image is resized to ``size`` times a factor drawn uniformly from ``scale``, then ``crop`` is cut out
    at a random place (parts beyond the image are black, and 255 in the label), then mirrored with
    probability 0.5 if ``flip``.

    Raises:
        InputError: other values.
    """

    size: Size
    scale: tuple[Factor, Factor] = (1.0, 1.0)
    crop: Size | None = None
    flip: bool = Field(default=False, strict=True)

    def __post_init__(self) -> None:
        low, high = self.scale
        if low > high:
            raise bad("scale", f"({low:g}, {high:g})", "(lowest, highest)")
        if self.crop is None and low != high:
            raise bad("crop", "None", "(H, W), as a random scale gives images of many sizes")

    def sample(self, rng: np.random.Generator) -> SampledGeometry:
        """Draw the geometry of one image.

        Always takes four numbers from ``rng``, so that disabling one option does not change the others.
        """
        factor, *where, mirror = rng.random(4)
        factor = self.scale[0] + factor * (self.scale[1] - self.scale[0])
        size = max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor))
        crop = self.crop or size
        # The first pixel of the crop; below 0 where the image is smaller than the crop.
        start = [
            int(part * (abs(side - crop_side) + 1)) * (1 if side > crop_side else -1)
            for side, crop_side, part in zip(size, crop, where, strict=True)
        ]
        return SampledGeometry(size, (start[0], start[1]), crop, self.flip and bool(mirror < 0.5))

    def apply(
        self, image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw a geometry and apply it: :meth:`sample` and :meth:`SampledGeometry.apply`."""
        return self.sample(rng).apply(image, label)


@dataclass(frozen=True)
class SampledGeometry:
    """Geometry of one image: resized to ``size``, cut from ``start`` to ``start + crop``, then mirrored if ``flip``.

    All are (height, width) in pixels; the crop may reach beyond the image.
    """

    size: tuple[int, int]
    start: tuple[int, int]
    crop: tuple[int, int]
    flip: bool

    def apply(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Transform ``image`` uint8 ``[H, W, 3]`` (bilinear) and ``label`` uint8 ``[H, W]`` (nearest) alike."""

        def transform(pixels: np.ndarray, method: Image.Resampling, fill: int) -> np.ndarray:
            pixels = _crop(resize(pixels, self.size, method), self.start, self.crop, fill)
            return np.ascontiguousarray(pixels[:, ::-1] if self.flip else pixels)

        image = transform(image, Image.Resampling.BILINEAR, 0)
        if label is not None:
            label = transform(label, Image.Resampling.NEAREST, IGNORE)
        return image, label

    def nearest_indices(self, native: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the column that each pixel before mirroring takes from a label of size ``native``.

        int32 ``[crop height]`` and ``[crop width]``; pixels beyond the image have index ``native``, one after
        the last. Equal to :meth:`apply` in every pixel, ties included.
        """
        tables = []
        for side, size, start, crop in zip(native, self.size, self.start, self.crop, strict=True):
            # Pillow adds up the step pixel by pixel, so the rounding errors of a sum decide the ties.
            steps = np.full(size, side / size)
            steps[0] *= 0.5
            source = steps.cumsum().astype(np.int32) if size != side else np.arange(size, dtype=np.int32)
            position = np.arange(start, start + crop)
            inside = (position >= 0) & (position < size)
            tables.append(np.where(inside, source[position.clip(0, size - 1)], np.int32(side)))
        return tables[0], tables[1]

    def count_pixels(self, mask: np.ndarray) -> int:
        """Count the pixels that show ``mask``, bool ``[H, W]`` of a label's native size, after :meth:`apply`."""
        height, width = mask.shape
        rows, columns = self.nearest_indices((height, width))
        row_uses = np.bincount(rows, minlength=height + 1)
        column_uses = np.bincount(columns, minlength=width + 1)
        y, x = mask.nonzero()
        return int(row_uses[y] @ column_uses[x])


def resize(pixels: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Resize uint8 to ``size``: bilinear ``[H, W, 3]``, averaging when it shrinks, or Pillow's nearest ``[H, W]``."""
    if pixels.shape[:2] == size:
        return pixels
    if method is Image.Resampling.NEAREST:
        return np.array(Image.fromarray(pixels).resize(size[::-1], method))
    # Within one grey level of Pillow's bilinear, in a tenth of the time. With [None] before permute torch recognises
    # and keeps the channels_last layout; in the other order it repacks the result.
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(image, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _crop(pixels: np.ndarray, start: tuple[int, int], size: tuple[int, int], fill: int) -> np.ndarray:
    """Cut ``size`` out of ``pixels`` from ``start`` on; beyond ``pixels`` it is ``fill``."""
    if pixels.shape[:2] == size and start == (0, 0):
        return pixels
    out = np.full(size + pixels.shape[2:], fill, pixels.dtype)
    source, target = [], []
    for side, first, crop_side in zip(pixels.shape, start, size, strict=False):
        begin, end = max(first, 0), min(first + crop_side, side)
        source.append(slice(begin, end))
        target.append(slice(begin - first, end - first))
    out[tuple(target)] = pixels[tuple(source)]
    return out
