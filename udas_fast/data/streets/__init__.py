"""Streets: procedural street scenes with Cityscapes' classes in two styles; nothing is read from disk."""

from __future__ import annotations

import numpy as np

from udas_fast.data.classes import CITYSCAPES
from udas_fast.data.streets.look import LOOKS
from udas_fast.data.streets.scene import render
from udas_fast.data.types import Sample, SegmentationDataset
from udas_fast.errors import bad, unknown

COUNTS = {"train": 2975, "val": 500}
"""Default number of scenes per split, as in Cityscapes."""
CACHE_BYTES = 512 * 2**20
"""Memory for rendered scenes that a process keeps, shared by all its datasets."""
_ROOT = 0x57_7EE75
_STYLES = tuple(LOOKS)
_SPLITS = tuple(COUNTS)


class _Rendered(dict[tuple[str, str, tuple[int, int], int], tuple[np.ndarray, np.ndarray]]):
    """Rendered scenes by style, split, size and number, and the bytes that they occupy."""

    bytes = 0


_rendered = _Rendered()


class Streets(SegmentationDataset):
    """Scenes of one ``style`` ("sim" or "real") and ``split`` ("train" or "val") at ``size`` (H, W).

    Scene i is rendered on demand and depends on (style, split, i) alone: no two styles or splits share one. It
    has the same layout at every size of one aspect ratio. ``image`` is uint8 ``[H, W, 3]``, ``label`` uint8
    ``[H, W]`` with Cityscapes' train ids, 255 for the ego vehicle's bonnet and for objects without a class.

    Raises:
        InputError: an unknown style or split, a side under 32 pixels, or a count under 1.
    """

    classes = CITYSCAPES

    def __init__(
        self, style: str, split: str, size: tuple[int, int] = (96, 192), count: int | None = None
    ) -> None:
        if style not in _STYLES:
            raise unknown("streets style", style, _STYLES)
        if split not in _SPLITS:
            raise unknown("streets split", split, _SPLITS)
        if len(size) != 2 or not all(isinstance(n, int | np.integer) and n >= 32 for n in size):
            raise bad("streets size", size, "height and width of at least 32 pixels")
        if count is not None and count < 1:
            raise bad("streets count", count, "at least one scene")
        self.style, self.split = style, split
        self.size = int(size[0]), int(size[1])
        self.name = f"streets-{style}"
        self._count = COUNTS[split] if count is None else int(count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Return scene ``index``; negative indices count from the end, IndexError outside the range."""
        i = int(index) + (self._count if index < 0 else 0)
        if not 0 <= i < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        scene = (self.style, self.split, self.size, i)
        found = _rendered.get(scene)
        if found is None:
            key = (_ROOT, _STYLES.index(self.style), _SPLITS.index(self.split), i)
            found = render(self.style, key, self.size)
            size = sum(array.nbytes for array in found)
            if _rendered.bytes + size <= CACHE_BYTES:
                _rendered[scene] = found
                _rendered.bytes += size
        image, label = found
        return Sample(image.copy(), label.copy(), self.id(i))

    def id(self, index: int) -> str:
        """Return the id of scene ``index``."""
        return f"streets-{self.style}-{self.split}-{index:06d}"
