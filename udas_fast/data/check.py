"""Check of a whole dataset before training: problems of its files, and how often each class occurs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from udas_fast.data.bit_depth import rule
from udas_fast.data.classes import IGNORE, ClassSet
from udas_fast.data.datasets import Joined
from udas_fast.data.files import ImageHeader, read_header
from udas_fast.data.specs import DatasetSpec
from udas_fast.data.types import SegmentationDataset, read_sample, require_dataset
from udas_fast.errors import InputError, bad, printable


@dataclass
class DatasetReport:
    """Result of :func:`check_dataset`; only samples without a problem are counted.

    ``pixels``: labelled pixels of each class in each image, int64 ``[images, C]``; ``areas``: pixels of each label,
    int64 ``[images]``, 0 for an image without one; ``sizes``: (H, W) → number of images; ``void``: ids of the images
    whose label has no labelled pixel; ``resized``: ids of the images whose label has another size; ``turned``: ids of
    labelled images that EXIF turns; ``deep``: number of 16-bit images; ``problems``: a message for each sample that
    cannot be used, in order; ``images`` counts all, ``labelled`` those with a label; ``spec``: format of the files,
    None for a dataset without files.
    """

    name: str
    classes: ClassSet
    images: int
    labelled: int
    sizes: dict[tuple[int, int], int]
    pixels: np.ndarray
    areas: np.ndarray
    void: list[str]
    resized: list[str]
    turned: list[str]
    deep: int
    problems: list[str]
    spec: DatasetSpec | None = None

    @property
    def ignored(self) -> int:
        """Pixels of id 255 in all labels."""
        return int(self.areas.sum() - self.pixels.sum())

    @property
    def counts(self) -> np.ndarray:
        """Labelled pixels of each class, int64 ``[C]``."""
        return self.pixels.sum(0)

    @property
    def images_with(self) -> np.ndarray:
        """Images in which each class occurs, int64 ``[C]``."""
        return (self.pixels > 0).sum(0)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return table rows: class, labelled pixels, their share of all labelled pixels, images with the class."""
        total = max(int(self.counts.sum()), 1)
        return [
            (name, f"{pixels:,}", f"{pixels / total:.2%}", f"{images:,}")
            for name, pixels, images in zip(
                self.classes.names, self.counts.tolist(), self.images_with.tolist(), strict=True
            )
        ]

    def table(self) -> str:
        """Return the report as text: images, sizes, a line for each class, ignored pixels; not the problems."""
        sizes = ", ".join(f"{count} of {width}x{height}" for (height, width), count in self.sizes.items())
        lines = [f"{self.name}: {self.images} images, {self.labelled} labelled ({sizes or 'none readable'})"]
        if self.labelled:
            rows = [("class", "pixels", "share", "images"), *self.rows()]
            widths = [max(len(row[column]) for row in rows) for column in range(4)]
            for name, *numbers in rows:
                cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
                lines.append("  ".join([name.ljust(widths[0]), *cells]))
            lines.append(f"ignored: {self.ignored:,} pixels")
        return "\n".join(lines)

    def notices(self, *, labels: bool = True) -> list[str]:
        """Return how 16-bit images are scaled, and what is probably wrong with labels that can be read.

        ``labels=False`` leaves out the labels.
        """
        notices = [f"16-bit images ({self.deep} of {self.images}) are {rule(self.depth)}"] * (self.deep > 0)
        return notices + (self._label_notices() if labels else [])

    @property
    def depth(self) -> int | None:
        """Bit depth of 16-bit images."""
        return None if self.spec is None else self.spec.bit_depth

    def _label_notices(self) -> list[str]:
        """Return what is probably wrong with the labels; nothing without labels.

        Label ids are judged by the classes that they mean, so id 0 is the class of train id 0.
        """
        if not self.labelled:
            return []
        total = int(self.counts.sum())
        if not total:
            return [f"no label has a labelled pixel: all {self.labelled} are void"]
        notices = []
        if self.turned:
            turned = listed(self.turned, self.labelled)
            notices.append(
                f"images that EXIF turns, whose labels must be drawn on what a viewer shows: {turned}"
            )
        if self.resized:
            notices.append(
                f"labels of another size than their image, to which they are resized: {listed(self.resized)}"
            )
        if self.void:
            notices.append(f"labels without a labelled pixel: {listed(self.void, self.labelled)}")
        if self.ignored and total == self.counts[0]:
            notices.append(
                f"the only ids are 0 ({self.classes.names[0]}) and 255, which is ignored: no other class is learnt or "
                "scored; if 255 is a class, name it in dataset.yaml: `classes: {background: 0, NAME: 255}`"
            )
        elif absent := [self.classes.names[i] for i in np.flatnonzero(self.counts == 0)]:
            notices.append(f"classes that no label shows: {listed(absent, len(self.classes), most=255)}")
        if 3 * self.ignored > total + self.ignored:
            share = f"{self.ignored / (total + self.ignored):.0%} of the pixels of labels are ignored"
            hint = f": no id reaches {len(self.classes)}, so they may be train ids, where {self.name} has label ids"
            notices.append(share + hint * self._looks_like_train_ids())
        return notices

    def _looks_like_train_ids(self) -> bool:
        """Return whether the files of a format with ids of its own hold no id above the highest train id."""
        if self.spec is None:
            return False
        ids = {
            label_id: train_id
            for label_id, train_id in self.spec.id_to_train_id.items()
            if train_id != IGNORE
        }
        classes, counts = len(self.classes), self.counts
        shown = [label_id for label_id, train_id in ids.items() if counts[train_id]]
        return max(ids, default=0) >= classes > max(shown, default=classes)

    def require_clean(self) -> None:
        """Raise InputError with the first problem and the number of others, if there is any."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise InputError(self.problems[0] + more)


def check_dataset(
    dataset: SegmentationDataset,
    *,
    progress: Callable[[int], object] | None = None,
) -> DatasetReport:
    """Decode every image and label of ``dataset``, compare their sizes and ids, and count classes.

    The first problem of each sample is collected instead of raised. ``progress`` is called with 1 after each
    sample.
    """
    require_dataset("check_dataset", dataset)
    classes = len(dataset.classes)
    pixels = np.zeros((len(dataset), classes), np.int64)
    sizes: Counter[tuple[int, int]] = Counter()
    areas = np.zeros(len(dataset), np.int64)
    labelled, deep, void, resized, turned, problems = 0, 0, [], [], [], []

    def check(index: int) -> _Measured | str:
        try:
            return _measure(dataset, index)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, found in enumerate(pool.map(check, range(len(dataset)))):
            if isinstance(found, str):
                problems.append(found)
            else:
                sizes[found.size] += 1
                deep += found.header.deep
                if found.histogram is not None:
                    labelled += 1
                    pixels[index] = found.histogram[:classes]
                    areas[index] = found.histogram.sum()
                    void += [found.id] * (not pixels[index].any())
                    resized += [found.id] * found.resized
                    turned += [found.id] * (found.header.orientation != 1)
            if progress is not None:
                progress(1)
    return DatasetReport(
        dataset.name,
        dataset.classes,
        len(dataset),
        labelled,
        dict(sizes.most_common()),
        pixels,
        areas,
        void,
        resized,
        turned,
        deep,
        problems,
        dataset.spec,
    )


@dataclass(frozen=True)
class _Measured:
    """Id, size (H, W), histogram of train ids, int64 ``[256]`` or None without a label, and header of one sample."""

    id: str
    size: tuple[int, int]
    histogram: np.ndarray | None
    header: ImageHeader
    resized: bool = False


def _measure(dataset: SegmentationDataset, index: int) -> _Measured:
    if isinstance(dataset, Joined):
        dataset, index = dataset.at(index)
    sample = read_sample(dataset, index)
    height, width = sample.image.shape[:2]
    header = ImageHeader() if dataset.spec is None else read_header(dataset.files(index).image)
    if sample.label is None:
        return _Measured(sample.id, (height, width), None, header)
    histogram = np.bincount(sample.label.ravel(), minlength=256)
    classes = len(dataset.classes)
    if histogram[classes:IGNORE].any():
        wrong = classes + int(np.flatnonzero(histogram[classes:IGNORE])[0])
        raise bad(f"label of {sample.id}", f"train id {wrong}", f"0 to {classes - 1}, or 255")
    resized = False
    if dataset.spec is not None and dataset.spec.resize_labels and (path := dataset.files(index).label):
        resized = read_header(path).size not in (None, (height, width))
    return _Measured(sample.id, (height, width), histogram, header, resized)


def listed(names: Sequence[str], total: int | None = None, *, most: int = 3) -> str:
    """Return the number of ``names``, of ``total``, and the first of them, such as ``5 of 9 (a, b, c, …)``."""
    count = f"{len(names)}" if total is None else f"{len(names)} of {total}"
    shown = [printable(name).replace("\n", "\\n") for name in names[:most]]
    return f"{count} ({', '.join(shown)}{', …' if len(names) > most else ''})"
