"""Order and random numbers of training samples: a pure function of (seed, name, draw), the same for every engine.

Nothing here has a state, so a run can resume at any step, and the number of workers, threads or processes
only changes who reads an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from udas_fast.data.geometry import Geometry, SampledGeometry
from udas_fast.errors import bad
from udas_fast.seeding import generator

MAX_CROP_TRIES = 10  # new crops drawn for a rare class; DAFormer's code
GTA5_AREA = 1914 * 1052  # pixels of the images that DAFormer's ``min_pixels`` is for
GTA5_RESIZED = 720 * 1280  # and of what it cuts its crops from


def labelled_subset(length: int, n: int, seed: int) -> np.ndarray:
    """Return ``n`` of ``length`` indices: the first of one permutation that depends on ``seed``, so 20 ⊂ 50 ⊂ 100."""
    return generator(seed, "labelled subset").permutation(length)[:n]


class RareClasses:
    """Rare-class sampling (DAFormer, CVPR 2022, arXiv 2111.14887, equations 5 and 6).

    A class c is drawn with P(c) = softmax_c((1 − f_c) / T), f_c its share of all labelled pixels; then one of
    the images with at least ``min_pixels`` pixels of it (3000 in DAFormer's code), each with equal probability.
    An image that shows no class so often counts for the class that it shows most, so that none is dropped; classes
    without an image are never drawn (:meth:`notices`). A crop that does not show more than ``min_crop_ratio`` ·
    ``min_pixels`` pixels of the class is drawn anew, up to :data:`MAX_CROP_TRIES` times.

    DAFormer's numbers are for GTA5. With ``areas`` ``min_pixels`` scales with each image's area, from that of GTA5;
    with ``size`` the least number in a crop scales with the area of the resized image, from DAFormer's 720 × 1280.

    Args:
        pixels: labelled pixels of each class in each image, int64 ``[images, C]``.
        temperature: T; the lower, the rarer the classes that are drawn.
        min_pixels: least number of pixels of a class in an image.
        min_crop_ratio: part of ``min_pixels`` that a crop has to exceed.
        areas: pixels of each image, int64 ``[images]``; None: ``min_pixels`` is the same for all.
        size: (H, W) that images are resized to; None: the least number in a crop is not scaled.

    Raises:
        InputError: no labelled pixel, or numbers outside their range.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        temperature: float = 0.01,
        min_pixels: int = 3000,
        min_crop_ratio: float = 0.5,
        *,
        areas: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        if not temperature > 0:
            raise bad("temperature of rare-class sampling", temperature, "a number above 0")
        if not min_crop_ratio >= 0:
            raise bad("min_crop_ratio of rare-class sampling", min_crop_ratio, "0 or more")
        if not pixels.any():
            raise bad("rare-class sampling", "no labelled pixel in any image", "labelled images")
        scale = np.ones(len(pixels)) if areas is None else np.asarray(areas) / GTA5_AREA
        self.pixels, self.min_pixels = pixels, np.maximum(min_pixels * scale, 1)  # of each image
        shown = pixels >= self.min_pixels[:, None]
        small = np.flatnonzero(~shown.any(1) & pixels.any(1))
        shown[small, pixels[small].argmax(1)] = True
        self.classes = np.flatnonzero(shown.any(0))
        share = pixels.sum(0) / pixels.sum()
        logits = (1 - share[self.classes]) / temperature
        weights = np.exp(logits - logits.max())
        self.probability = weights / weights.sum()
        self.images = [np.flatnonzero(shown[:, c]) for c in self.classes]
        resized = 1.0 if size is None else size[0] * size[1] / GTA5_RESIZED
        self.min_in_crop = min_crop_ratio * min_pixels * resized

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw (class, index of an image that shows it), from two numbers of ``rng``."""
        which, place = rng.random(2)
        # The last cumulative sum may be a rounding error below 1.
        c = min(int(np.searchsorted(self.probability.cumsum(), which, side="right")), len(self.classes) - 1)
        return int(self.classes[c]), int(self.images[c][int(place * len(self.images[c]))])

    def notices(self, names: Sequence[str]) -> list[str]:
        """Return which classes, of these ``names``, and which number of images are never drawn."""
        lines = []
        if never := [self._why(c, name) for c, name in enumerate(names) if c not in self.classes]:
            lines.append(f"classes that are never drawn: {', '.join(never)}")
        if void := int((~self.pixels.any(1)).sum()):
            lines.append(f"images that are never drawn, as they have no labelled pixel: {void}")
        return lines

    def _why(self, c: int, name: str) -> str:
        """Return a class that is never drawn with the reason."""
        best = int((self.pixels[:, c] / self.min_pixels).argmax())
        if not self.pixels[best, c]:
            return f"{name} (in no label)"
        needed = math.ceil(self.min_pixels[best])
        return f"{name} (at most {self.pixels[best, c]} of the {needed} pixels that an image needs)"


@dataclass(frozen=True)
class Sampler:
    """Draws 0, 1, 2, … of one loader, divided among ``world_size`` processes of which this one is ``rank``.

    Step t holds draws ``t · batch_size · world_size`` onwards, ``batch_size`` for each rank in turn: the images of a
    step depend on the global batch only, not on how many processes share it.
    """

    length: int
    batch_size: int
    seed: int
    name: str
    rank: int = 0
    world_size: int = 1
    rare_classes: RareClasses | None = None
    parts: tuple[tuple[int, float], ...] = ()
    """Number of images of each part that ``length`` consists of, and its share of the draws; empty: one part."""

    def __post_init__(self) -> None:
        if self.length == 0:
            raise bad(f"data of {self.name}", "no images", "at least one")
        if self.batch_size < 1:
            raise bad(f"batch size of {self.name}", self.batch_size, "1 or more")
        if not 0 <= self.rank < self.world_size:
            expected = f"0 to {self.world_size - 1}, as world_size is {self.world_size}"
            raise bad(f"rank of {self.name}", self.rank, expected)

    @property
    def global_batch(self) -> int:
        """Number of draws of one step over all processes."""
        return self.batch_size * self.world_size

    def draws(self, step: int) -> range:
        """Return the draws of this process in ``step``."""
        first = step * self.global_batch + self.rank * self.batch_size
        return range(first, first + self.batch_size)

    def image_index(self, draw: int) -> int:
        """Return the image of a draw: each once an epoch in an order of that epoch, or chosen by rare classes."""
        if self.rare_classes is not None:
            return self._rare_draw(self.rare_classes, draw)[1]
        if self.parts:
            return self._draw_of_parts(draw)
        epoch, place = divmod(draw, self.length)
        return int(_order(self.seed, self.name, epoch, self.length)[place])

    def needs_labels(self, geometry: Geometry) -> bool:
        """Return whether :meth:`sample_geometry` needs labels: crops must show the rare class that was drawn."""
        return self._crop_classes(geometry) is not None

    def sample_geometry(self, geometry: Geometry, draw: int, label: np.ndarray | None) -> SampledGeometry:
        """Return the geometry of a draw; ``label``: train ids of its image at native size, None without labels."""
        rng = self.generator("augment", draw)
        sampled = geometry.sample(rng)
        rare_classes = self._crop_classes(geometry)
        if label is not None and rare_classes is not None:
            shown = np.equal(label, self._rare_draw(rare_classes, draw)[0])
            for _ in range(MAX_CROP_TRIES):
                if sampled.count_pixels(shown) > rare_classes.min_in_crop:
                    break
                sampled = geometry.sample(rng)
        return sampled

    def generator(self, purpose: str, draw: int) -> np.random.Generator:
        """Return the random numbers of one draw for one purpose, such as ``"augment"``."""
        return generator(self.seed, self.name, purpose, draw)

    def _rare_draw(self, rare_classes: RareClasses, draw: int) -> tuple[int, int]:
        return rare_classes.draw(self.generator("rare class", draw))

    def _draw_of_parts(self, draw: int) -> int:
        """Return the image of a draw: n draws hold n · share images of a part, and these take turns."""
        first, left = 0, sum(share for _, share in self.parts)
        for number, (length, share) in enumerate(self.parts):
            is_last = number == len(self.parts) - 1
            before = draw if is_last else math.floor(draw * (share / left))  # draws of this part
            if is_last or math.floor((draw + 1) * (share / left)) > before:
                epoch, place = divmod(before, length)
                return first + int(_order(self.seed, f"{self.name}/{number}", epoch, length)[place])
            first, left, draw = first + length, left - share, draw - before
        raise AssertionError("the last part takes every draw that is left")

    def _crop_classes(self, geometry: Geometry) -> RareClasses | None:
        """Return the rare classes that crops must show, None if any crop will do."""
        if self.rare_classes is None or self.rare_classes.min_in_crop <= 0 or geometry.crop is None:
            return None
        return self.rare_classes


@lru_cache(maxsize=32)  # the loaders of a run, each in one or two epochs of every part at a time
def _order(seed: int, name: str, epoch: int, length: int) -> np.ndarray:
    return generator(seed, name, "order", epoch).permutation(length)
