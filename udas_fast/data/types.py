"""What every room agrees on about data: samples, batches, class sets and the base of all datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

IGNORE = 255
"""The train id of pixels that are never trained on and never scored."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset; train id i is ``names[i]`` and is drawn in ``palette[i]`` (8-bit RGB)."""

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{self.name}: {len(self.names)} names for {len(self.palette)} colours")

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Sample:
    """One image at its native size.

    ``image`` is uint8 ``[H, W, 3]`` RGB; ``label`` holds train ids, uint8 ``[H, W]`` with 255 ignored, or is
    None where no label was asked for. ``id`` names the sample within its dataset and split.
    """

    image: np.ndarray
    label: np.ndarray | None
    id: str


@dataclass
class Batch:
    """Images of one size, uint8 ``[N, 3, H, W]``; ``label`` is uint8 ``[N, H, W]`` train ids, or None."""

    image: torch.Tensor
    label: torch.Tensor | None
    ids: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; from pinned memory the copy does not wait."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return Batch(self.image.to(device, non_blocking=True), label, self.ids)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (torch's DataLoader calls this by name)."""
        label = None if self.label is None else self.label.pin_memory()
        return Batch(self.image.pin_memory(), label, self.ids)


class SegmentationDataset(ABC):
    """An ordered, finite set of labelled images. Index order is the sorted order of the ids."""

    name: str
    classes: ClassSet
    on_disk: bool = False
    """Whether samples come from files, which may be damaged and are read once before training."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index`` with its label; raises InputError naming the file where one cannot be read."""

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
