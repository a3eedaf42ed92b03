"""Datasets of files, and views of datasets: fixed subsets, images without labels."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
from PIL import Image

from udas_fast.data.files import read_header, read_image
from udas_fast.data.geometry import resize
from udas_fast.data.labels import IdMap, read_label
from udas_fast.data.sampler import labelled_subset
from udas_fast.data.specs import DatasetSpec
from udas_fast.data.types import Sample, SampleFiles, SegmentationDataset, as_index, require_dataset
from udas_fast.errors import InputError, bad


class FileDataset(SegmentationDataset):
    """Images and labels on disk in the format of ``spec``; files are opened when a sample is read."""

    on_disk = True
    spec: DatasetSpec

    def __init__(self, spec: DatasetSpec, samples: Sequence[SampleFiles]) -> None:
        self.name = spec.name
        self.classes = spec.classes
        self.spec = spec
        self.samples = tuple(samples)
        self.id_map = IdMap(spec.id_to_train_id, spec.colour_to_train_id)

    def with_spec(self, spec: DatasetSpec) -> FileDataset:
        """Return the same files read as ``spec`` says."""
        made = copy.copy(self)
        made.spec, made.classes = spec, spec.classes
        made.id_map = IdMap(spec.id_to_train_id, spec.colour_to_train_id)
        return made

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample, files = self.unlabelled(index), self.files(index)
        if (path := files.label) is None:
            return sample
        height, width = sample.image.shape[:2]
        label = read_label(path, self.id_map, rgb16=self.spec.rgb16)
        if self.spec.resize_labels:
            label = resize(label, (height, width), Image.Resampling.NEAREST)
        check_sizes(files, label.shape, (height, width))
        return Sample(sample.image, label, sample.id)

    def label(self, index: int) -> np.ndarray | None:
        """Return the train ids of sample ``index``, uint8 ``[H, W]``, without opening its image; None without a label.

        Raises:
            InputError: the label cannot be read.
        """
        path = self.files(index).label
        return None if path is None else read_label(path, self.id_map, rgb16=self.spec.rgb16)

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label."""
        files = self.files(index)
        return Sample(read_image(files.image, bit_depth=self.spec.bit_depth), None, files.id)

    def id(self, index: int) -> str:
        """Return the id of sample ``index``."""
        return self.files(index).id

    def files(self, index: int) -> SampleFiles:
        """Return the files of sample ``index``."""
        return self.samples[as_index(index, f"index of {self.name}")]


def check_sizes(files: SampleFiles, label: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Raise InputError unless the (H, W) of the label in ``files`` equals that of its image."""
    if label != image:
        found, expected = (f"{width}x{height}" for height, width in (label, image))
        why = ""
        if (turn := read_header(files.image).orientation) != 1:
            advice = "draw labels on what a viewer shows, or save the image without EXIF"
            why = f", which EXIF orientation {turn} turns: {advice}"
        raise bad(f"label {files.label}", f"{found} pixels", f"the {expected} of its image{why}")


class Subset(SegmentationDataset):
    """The samples ``indices`` of ``dataset``, in the order of ``dataset``."""

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        require_dataset("Subset", dataset)
        self.name = dataset.name
        self.classes = dataset.classes
        self.on_disk = dataset.on_disk
        self.spec = dataset.spec
        self.dataset = dataset
        self.indices = sorted(_checked_indices(dataset, indices))

    def _at(self, index: int) -> int:
        """Return the index in the whole dataset."""
        return self.indices[as_index(index, f"index of {self.name}")]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self._at(index)]

    def id(self, index: int) -> str:
        """Return the id of sample ``index``."""
        return self.dataset.id(self._at(index))

    def files(self, index: int) -> SampleFiles:
        """Return the files of sample ``index``."""
        return self.dataset.files(self._at(index))

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label."""
        return self.dataset.unlabelled(self._at(index))


class Unlabelled(SegmentationDataset):
    """The images of ``dataset`` without labels; label files are never opened."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        require_dataset("Unlabelled", dataset)
        self.name = dataset.name
        self.classes = dataset.classes
        self.on_disk = dataset.on_disk
        self.spec = dataset.spec
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.unlabelled(index)

    def id(self, index: int) -> str:
        """Return the id of sample ``index``."""
        return self.dataset.id(index)

    def files(self, index: int) -> SampleFiles:
        """Return the files of sample ``index`` without the label."""
        return replace(self.dataset.files(index), label=None)


class Joined(SegmentationDataset):
    """The images of several datasets of the same classes, of which training draws each in proportion to its share.

    ``spec`` is None, as their files differ.

    Raises:
        InputError: other classes than those of the first, or a share that is not above 0.
    """

    def __init__(self, parts: Sequence[SegmentationDataset], shares: Sequence[float]) -> None:
        for part, share in zip(parts, shares, strict=True):
            require_dataset("Joined", part)
            if difference := part.classes.first_difference(parts[0].classes):
                expected = f"those of {parts[0].name}; --classes FILE makes them of both by name"
                raise bad(f"classes of source {part.name}", difference, expected)
            if not 0 < share < math.inf:
                raise bad(f"share of source {part.name}", share, "a number above 0")
        self.name = " + ".join(part.name for part in parts)
        self.classes = parts[0].classes
        self.on_disk = any(part.on_disk for part in parts)
        self.parts, self.shares = tuple(parts), tuple(shares)
        self._ends = list(accumulate(map(len, parts)))

    @property
    def lengths_and_shares(self) -> tuple[tuple[int, float], ...]:
        """Number of images of each dataset, and its share."""
        return tuple(zip(map(len, self.parts), self.shares, strict=True))

    def at(self, index: int) -> tuple[SegmentationDataset, int]:
        """Return the dataset of sample ``index``, and its index there."""
        index = as_index(index, f"index of {self.name}")
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        part, place = self.at(index)
        return part[place]

    def id(self, index: int) -> str:
        """Return the id of sample ``index``, as its dataset has it."""
        part, place = self.at(index)
        return part.id(place)

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label."""
        part, place = self.at(index)
        return part.unlabelled(place)


def _checked_indices(dataset: SegmentationDataset, indices: Sequence[int]) -> list[int]:
    if not isinstance(indices, Iterable) or isinstance(indices, str):
        raise bad(f"indices of {dataset.name}", type(indices).__name__, "a sequence of numbers")
    numbers = [as_index(index, f"index of {dataset.name}") for index in indices]
    if wrong := [i for i in numbers if not 0 <= i < len(dataset)]:
        raise bad(f"indices of {dataset.name}", wrong[0], f"0 to {len(dataset) - 1}")
    return numbers


def with_labels(dataset: SegmentationDataset) -> SegmentationDataset | None:
    """Return ``dataset`` with the labels that :class:`Unlabelled` hides; None without labels.

    Of a dataset of files the first image that has a label decides, and others may have none. For reports on the result
    of training, never for training: these files have not been checked.
    """
    if isinstance(dataset, Unlabelled):
        return with_labels(dataset.dataset)
    if isinstance(dataset, Subset):
        whole = with_labels(dataset.dataset)
        return None if whole is None or _first_labelled(dataset) is None else Subset(whole, dataset.indices)
    first = _first_labelled(dataset)
    try:
        return dataset if first is not None and dataset[first].label is not None else None
    except InputError:
        return None


def _first_labelled(dataset: SegmentationDataset) -> int | None:
    """Return the index of the first image that has a label file, 0 of a dataset without files; None without any."""
    if dataset.spec is None:
        return 0
    return next((i for i in range(len(dataset)) if dataset.files(i).label is not None), None)


def subset(dataset: SegmentationDataset, n: int, seed: int = 0) -> Subset:
    """Return ``n`` samples: the first of one permutation that depends on ``seed`` only, so 20 ⊂ 50 ⊂ 100.

    Raises:
        InputError: the dataset holds fewer.
    """
    require_dataset("subset", dataset)
    n = as_index(n, f"number of labelled images of {dataset.name}")
    if not 1 <= n <= len(dataset):
        raise bad(f"labelled images of {dataset.name}", n, f"1 to {len(dataset)}, the size of the dataset")
    return Subset(dataset, labelled_subset(len(dataset), n, seed).tolist())
