"""What every room agrees on about data: samples, batches, class sets and the base of all datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from udas_fast.errors import bad

if TYPE_CHECKING:
    from udas_fast.data.geometry import Placement
    from udas_fast.data.specs import DatasetSpec

IGNORE = 255
"""The train id of pixels that are never trained on and never scored."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset; train id i is ``names[i]`` and is drawn in ``palette[i]`` (8-bit RGB).

    Raises InputError for a palette that is not one such colour a class.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        thing = f"palette of {self.name}"
        if len(self.names) != len(self.palette):
            raise bad(thing, f"{len(self.palette)} colours", f"{len(self.names)}, one a class")
        for colour in self.palette:
            if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                raise bad(thing, f"colour {colour}", "three numbers of 0 to 255")

    def __len__(self) -> int:
        return len(self.names)

    def first_difference(self, other: ClassSet) -> str | None:
        """The first id that stands for something else in ``other``, in words; None where names and order are equal."""
        for number, (own, theirs) in enumerate(zip_longest(self.names, other.names)):
            if own != theirs:
                return f"number {number} is {own!r} and {theirs!r}"
        return None


@dataclass(frozen=True)
class Item:
    """The files of one sample; ``label`` is None where the dataset was opened without labels."""

    id: str
    image: Path
    label: Path | None


@dataclass
class Sample:
    """One image at its native size.

    ``image`` is uint8 ``[H, W, 3]`` RGB; ``label`` holds train ids, uint8 ``[H, W]`` with 255 ignored, or is
    None where no label was asked for. ``id`` names the sample within its dataset and split.
    """

    image: np.ndarray
    label: np.ndarray | None
    id: str

    def checked(self) -> Sample:
        """This sample; raises InputError where its arrays are not as above (a user's dataset may give anything)."""
        if not _is_uint8(self.image) or self.image.shape != (*self.image.shape[:2], 3):
            raise bad(f"image of {self.id}", _found(self.image), "uint8 [H, W, 3]")
        size = self.image.shape[:2]
        if self.label is not None and not (_is_uint8(self.label) and self.label.shape == size):
            raise bad(f"label of {self.id}", _found(self.label), f"uint8 {list(size)}, the size of its image")
        return self


def _is_uint8(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8


def _found(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


@dataclass
class Batch:
    """Images of one size, uint8 ``[N, 3, H, W]``; ``label`` is uint8 ``[N, H, W]`` train ids, or None.

    ``views`` are uint8 ``[N, K - 1, 3, H, W]``: the same images under strong photometric augmentation, or None.
    ``placements`` tell the geometry of each image, where a stream made the batch.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    ids: list[str]
    views: torch.Tensor | None = None
    placements: list[Placement] = field(default_factory=list)

    @property
    def required_label(self) -> torch.Tensor:
        """The label; raises InputError where the images have none."""
        if self.label is None:
            raise bad(f"images {', '.join(self.ids[:4])}", "no label", "labelled images")
        return self.label

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; from pinned memory the copy does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (torch's DataLoader calls this by name)."""
        return self._each(torch.Tensor.pin_memory)

    def tensors(self) -> list[torch.Tensor]:
        """Image, label and views, those that are there."""
        return [t for t in (self.image, self.label, self.views) if t is not None]

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        label = None if self.label is None else change(self.label)
        views = None if self.views is None else change(self.views)
        return replace(self, image=change(self.image), label=label, views=views)


class SegmentationDataset(ABC):
    """An ordered, finite set of labelled images. Index order is the sorted order of the ids."""

    name: str
    classes: ClassSet
    on_disk: bool = False
    """Whether samples come from files, which may be damaged and are read once before training."""
    description: DatasetSpec | None = None
    """How the files are to be read, where :meth:`item` knows them."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index`` with its label; raises InputError naming the file where one cannot be read."""

    def id(self, index: int) -> str:
        """The id of sample ``index``; no file is opened where the dataset knows it otherwise."""
        return self.unlabelled(index).id

    def item(self, index: int) -> Item:
        """The files of sample ``index``, for engines that read them themselves."""
        raise bad(f"files of {self.name}", "none", "a dataset with a description")

    def unlabelled(self, index: int) -> Sample:
        """Sample ``index`` with ``label=None``; file datasets do not open the label file."""
        sample = self[index]
        return Sample(sample.image, None, sample.id)


CITYSCAPES = ClassSet(
    "cityscapes",
    (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
)

CAMVID = ClassSet(
    "camvid",
    (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
