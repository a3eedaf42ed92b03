"""Which image comes when: a pure function of (seed, name, epoch, rank, world, index), for every engine.

Nothing here has a state, so a run goes on at any step without one, and the number of workers, threads or
processes changes nothing but who reads an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from udas_fast.data.geometry import Geometry, Placement
from udas_fast.errors import bad
from udas_fast.seeding import generator

TRIES = 10  # crops that are drawn anew for a rare class; DAFormer's code


def labelled_subset(length: int, n: int, seed: int) -> np.ndarray:
    """``n`` of ``length`` indices: the first of one permutation that depends on ``seed``, so 20 ⊂ 50 ⊂ 100."""
    return generator(seed, "labelled subset").permutation(length)[:n]


class RareClasses:
    """Rare-class sampling (DAFormer, CVPR 2022, arXiv 2111.14887, equations 5 and 6).

    A class c is drawn with P(c) = softmax_c((1 − f_c) / T), f_c its share of all labelled pixels; then one
    of the images that show it in at least ``min_pixels`` pixels (3000 in DAFormer's code), each as likely as
    the others. Classes that no image shows so often are never drawn. A crop that does not show more than
    ``min_crop_ratio`` · ``min_pixels`` pixels of the class is drawn anew, up to :data:`TRIES` times.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        temperature: float = 0.01,
        min_pixels: int = 3000,
        min_crop_ratio: float = 0.5,
    ) -> None:
        """``pixels``: int64 ``[images, C]``, the pixels of each class. Raises InputError where no image fits."""
        if not temperature > 0:
            raise bad("temperature of rare-class sampling", temperature, "a number above 0")
        if not min_crop_ratio >= 0:
            raise bad("min_crop_ratio of rare-class sampling", min_crop_ratio, "0 or more")
        shown = pixels >= max(min_pixels, 1)
        self.classes = np.flatnonzero(shown.any(0))
        if not len(self.classes):
            raise bad(
                "rare-class sampling", f"no class of {min_pixels} pixels in any image", "a lower min_pixels"
            )
        share = pixels.sum(0) / pixels.sum()
        logits = (1 - share[self.classes]) / temperature
        weights = np.exp(logits - logits.max())
        self.probability = weights / weights.sum()
        self.images = [np.flatnonzero(shown[:, c]) for c in self.classes]
        self.min_in_crop = min_crop_ratio * min_pixels

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """(class, an image's index), from two numbers of ``rng``."""
        which, place = rng.random(2)
        # The last sum may be a rounding error below 1.
        c = min(int(np.searchsorted(self.probability.cumsum(), which, side="right")), len(self.classes) - 1)
        return int(self.classes[c]), int(self.images[c][int(place * len(self.images[c]))])


@dataclass(frozen=True)
class Sampler:
    """Draws 0, 1, 2, … of one stream, dealt to ``world`` processes of which this one is ``rank``.

    Step t holds draws ``t · batch_size · world`` onwards, ``batch_size`` for each rank in turn: what a step
    sees depends on the global batch only, not on how many processes share it.
    """

    length: int
    batch_size: int
    seed: int
    name: str
    rank: int = 0
    world: int = 1
    rare: RareClasses | None = None

    def __post_init__(self) -> None:
        if self.length == 0:
            raise bad(f"stream {self.name}", "no images", "at least one")
        if self.batch_size < 1:
            raise bad(f"batch size of {self.name}", self.batch_size, "1 or more")
        if not 0 <= self.rank < self.world:
            raise bad(f"rank of {self.name}", self.rank, f"0 to {self.world - 1}, as world is {self.world}")

    @property
    def global_batch(self) -> int:
        """Draws of one step over all processes."""
        return self.batch_size * self.world

    def draws(self, step: int) -> range:
        """The draws of this process in ``step``."""
        first = step * self.global_batch + self.rank * self.batch_size
        return range(first, first + self.batch_size)

    def index(self, draw: int) -> int:
        """The image of a draw: each once an epoch in the epoch's own order, or by rare classes."""
        if self.rare is not None:
            return self.rare.draw(self.generator("rare class", draw))[1]
        epoch, place = divmod(draw, self.length)
        return int(_order(self.seed, self.name, epoch, self.length)[place])

    def looks_at_labels(self, geometry: Geometry) -> bool:
        """Whether :meth:`place` needs labels: crops must show the rare class that was drawn."""
        return self.rare is not None and self.rare.min_in_crop > 0 and geometry.crop is not None

    def place(self, geometry: Geometry, draw: int, label: np.ndarray | None) -> Placement:
        """The geometry of a draw; ``label``: train ids of its image at native size, None where there are none."""
        rng = self.generator("augment", draw)
        placement = geometry.place(rng)
        if label is not None and self.looks_at_labels(geometry):
            shown = label == self.rare.draw(self.generator("rare class", draw))[0]
            for _ in range(TRIES):
                if placement.count(shown) > self.rare.min_in_crop:
                    break
                placement = geometry.place(rng)
        return placement

    def generator(self, purpose: str, draw: int) -> np.random.Generator:
        """The random numbers of one draw for one purpose, such as ``"augment"``."""
        return generator(self.seed, self.name, purpose, draw)


@lru_cache(maxsize=8)  # the streams of a run, each in one or two epochs at a time
def _order(seed: int, name: str, epoch: int, length: int) -> np.ndarray:
    return generator(seed, name, "order", epoch).permutation(length)
