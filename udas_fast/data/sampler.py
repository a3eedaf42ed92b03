"""Order and random numbers of training samples: a pure function of (seed, name, draw), the same for every engine.

Nothing here has a state, so a run can resume at any step, and the number of workers, threads or processes
only changes who reads an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from udas_fast.data.geometry import Geometry, SampledGeometry
from udas_fast.errors import bad
from udas_fast.seeding import generator

MAX_CROP_TRIES = 10  # new crops drawn for a rare class; DAFormer's code


def labelled_subset(length: int, n: int, seed: int) -> np.ndarray:
    """Return ``n`` of ``length`` indices: the first of one permutation that depends on ``seed``, so 20 ⊂ 50 ⊂ 100."""
    return generator(seed, "labelled subset").permutation(length)[:n]


class RareClasses:
    """Rare-class sampling (DAFormer, CVPR 2022, arXiv 2111.14887, equations 5 and 6).

    A class c is drawn with P(c) = softmax_c((1 − f_c) / T), f_c its share of all labelled pixels; then one of
    the images with at least ``min_pixels`` pixels of it (3000 in DAFormer's code), each with equal probability.
    Classes that no image shows so often are never drawn. A crop that does not show more than
    ``min_crop_ratio`` · ``min_pixels`` pixels of the class is drawn anew, up to :data:`MAX_CROP_TRIES` times.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        temperature: float = 0.01,
        min_pixels: int = 3000,
        min_crop_ratio: float = 0.5,
    ) -> None:
        """Take ``pixels`` of each class in each image, int64 ``[images, C]``; InputError where no image qualifies."""
        if not temperature > 0:
            raise bad("temperature of rare-class sampling", temperature, "a number above 0")
        if not min_crop_ratio >= 0:
            raise bad("min_crop_ratio of rare-class sampling", min_crop_ratio, "0 or more")
        shown = pixels >= max(min_pixels, 1)
        self.classes = np.flatnonzero(shown.any(0))
        if not len(self.classes):
            found = f"no class of {min_pixels} pixels in any image"
            raise bad("rare-class sampling", found, "a lower min_pixels")
        share = pixels.sum(0) / pixels.sum()
        logits = (1 - share[self.classes]) / temperature
        weights = np.exp(logits - logits.max())
        self.probability = weights / weights.sum()
        self.images = [np.flatnonzero(shown[:, c]) for c in self.classes]
        self.min_in_crop = min_crop_ratio * min_pixels

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw (class, index of an image that shows it), from two numbers of ``rng``."""
        which, place = rng.random(2)
        # The last cumulative sum may be a rounding error below 1.
        c = min(int(np.searchsorted(self.probability.cumsum(), which, side="right")), len(self.classes) - 1)
        return int(self.classes[c]), int(self.images[c][int(place * len(self.images[c]))])


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

    def _crop_classes(self, geometry: Geometry) -> RareClasses | None:
        """Return the rare classes that crops must show, None if any crop will do."""
        if self.rare_classes is None or self.rare_classes.min_in_crop <= 0 or geometry.crop is None:
            return None
        return self.rare_classes


@lru_cache(maxsize=8)  # the loaders of a run, each in one or two epochs at a time
def _order(seed: int, name: str, epoch: int, length: int) -> np.ndarray:
    return generator(seed, name, "order", epoch).permutation(length)
