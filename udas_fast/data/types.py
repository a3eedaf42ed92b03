"""Samples, batches and the base class of all datasets."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from udas_fast.data.classes import ClassSet
from udas_fast.data.geometry import SampledGeometry
from udas_fast.data.specs import DatasetSpec
from udas_fast.errors import bad

StreamName: TypeAlias = Literal["source", "labelled", "unlabelled"]
"""Streams of a run: labelled source, labelled target and unlabelled target images."""


@dataclass(frozen=True)
class SampleFiles:
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
        """Return this sample; raise InputError if its arrays are not as above (a user's dataset may return any)."""
        if not _is_uint8(self.image) or self.image.shape != (*self.image.shape[:2], 3):
            raise bad(f"image of {self.id}", _describe(self.image), "uint8 [H, W, 3]")
        size = self.image.shape[:2]
        if self.label is not None and not (_is_uint8(self.label) and self.label.shape == size):
            expected = f"uint8 {list(size)}, the size of its image"
            raise bad(f"label of {self.id}", _describe(self.label), expected)
        return self


def _is_uint8(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


@dataclass
class Batch:
    """Images of one size, uint8 ``[N, 3, H, W]``; ``label`` is uint8 ``[N, H, W]`` train ids, or None.

    Images that a method has mixed for a network may be its floating input.
    ``views`` are uint8 ``[N, K', 3, H, W]``: the same images under photometric augmentation, or None.
    ``geometries`` holds the geometry of each image if a :class:`~udas_fast.data.TrainLoader` made the batch.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    ids: list[str]
    views: torch.Tensor | None = None
    geometries: list[SampledGeometry] = field(default_factory=list)

    @property
    def required_label(self) -> torch.Tensor:
        """The label; raises InputError where the images have none."""
        if self.label is None:
            raise bad(f"images {', '.join(self.ids[:4])}", "no label", "labelled images")
        return self.label

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``; from pinned memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (torch's DataLoader calls this method)."""
        return self._map(torch.Tensor.pin_memory)

    def tensors(self) -> list[torch.Tensor]:
        """Return image, label and views, without those that are None."""
        return [t for t in (self.image, self.label, self.views) if t is not None]

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        label = None if self.label is None else change(self.label)
        views = None if self.views is None else change(self.views)
        return replace(self, image=change(self.image), label=label, views=views)


def as_index(index: object, thing: str) -> int:
    """Return ``index`` as a number; raise InputError, which begins with ``thing``, for anything else."""
    try:
        return operator.index(index)  # type: ignore[arg-type]  # which raises for other types
    except TypeError:
        raise bad(thing, repr(index)[:60], "a whole number") from None


LoadResult = tuple[Batch | None, list[str]]
"""A batch, None if no image could be read for it, and a message for each file that could not be read."""


class SegmentationDataset(ABC):
    """An ordered, finite set of labelled images, sorted by id."""

    name: str
    classes: ClassSet
    on_disk: bool = False
    """True if samples are files, which may be damaged and are all read once before training."""
    spec: DatasetSpec | None = None
    """Format of the files that :meth:`files` returns, None for a dataset without files."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` with its label; raise InputError that names the file if one cannot be read."""

    def id(self, index: int) -> str:
        """Return the id of sample ``index``; subclasses that know it otherwise open no file."""
        return self.unlabelled(index).id

    def files(self, index: int) -> SampleFiles:
        """Return the files of sample ``index``, for engines that read them themselves."""
        raise bad(f"files of {self.name}", "none", "a dataset on disk")

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` with ``label=None``; file datasets do not open the label file."""
        sample = self[index]
        return Sample(sample.image, None, sample.id)


def require_dataset(thing: str, value: object) -> None:
    """Raise InputError, which begins with ``thing``, unless ``value`` is a dataset that is complete."""
    if not isinstance(value, SegmentationDataset):
        raise bad(thing, type(value).__name__, "a SegmentationDataset, as open_dataset returns it")
    kinds: dict[str, type] = {"name": str, "classes": ClassSet}
    for attribute, kind in kinds.items():
        if not isinstance(found := getattr(value, attribute, None), kind):
            raise bad(f"{thing}: {attribute}", type(found).__name__, f"a {kind.__name__}")


def read_sample(dataset: SegmentationDataset, index: int) -> Sample:
    """Return sample ``index`` of ``dataset``, checked; raise InputError for what is none.

    A user's dataset may return anything.
    """
    sample = dataset[index]
    if not isinstance(sample, Sample):
        raise bad(f"sample {index} of {dataset.name}", type(sample).__name__, "a udas_fast.data.Sample")
    return sample.checked()
