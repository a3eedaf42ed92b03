"""Pseudo-labels on disk: written image by image, thresholded when all are there, read as labels."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from udas_fast import distributed
from udas_fast.atomic import atomic_write, make_folder
from udas_fast.data import png
from udas_fast.data.classes import IGNORE
from udas_fast.data.datasets import check_sizes
from udas_fast.data.files import UNREADABLE
from udas_fast.data.labels import IdMap, read_label
from udas_fast.data.types import Sample, SampleFiles, SegmentationDataset
from udas_fast.errors import InputError, bad, first_line

BINS = 64  # of the histograms, as in ops.pseudo_label
LEVELS = 256  # of a confidence on disk: floor(256 · confidence)


class PseudoLabelFolder:
    """Folder with the labels of one round: ``000000.png``, … by index (train ids, 255 dropped) and ``summary.json``.

    Before :meth:`finish`, ``raw/`` holds class and confidence of every pixel, because thresholds may depend on all
    images; :meth:`finish` deletes it. Files are written atomically, and readable ones of an interrupted run are kept.
    Several processes share the images and the folder: all methods except :meth:`add` are collective.

    Args:
        folder: of this round alone.
        dataset: whose images are labelled.
        key: identifies everything that determines the labels; a folder with another key is started again.
    """

    def __init__(self, folder: Path, dataset: SegmentationDataset, key: str) -> None:
        self.folder, self.length, self.key = folder, len(dataset), key
        self.num_classes = len(dataset.classes)
        self.raw = folder / "raw"

    @property
    def complete(self) -> bool:
        """True if every label is written."""
        return distributed.on_main(self._is_complete)

    def _is_complete(self) -> bool:
        path = self.folder / "summary.json"
        try:
            if not path.is_file() or read_summary(self.folder)["key"] != self.key:
                return False
        except InputError:  # damaged: all labels are made again
            return False
        return all(label_path(self.folder, index).is_file() for index in range(self.length))

    def missing(self) -> list[int]:
        """Return the images that this process has yet to :meth:`add`."""
        distributed.on_main(self._begin)
        return [index for index in distributed.shard_indices(self.length) if self._read(index) is None]

    def _begin(self) -> None:
        """Make the folder; replace one with labels of another key."""
        marker = self.raw / "key"
        if not marker.is_file() or marker.read_bytes() != self.key.encode():
            shutil.rmtree(self.folder, ignore_errors=True)
            make_folder(self.raw)
            atomic_write(self.key, marker)

    def add(self, index: int, label: np.ndarray, confidence: np.ndarray) -> None:
        """Store the class uint8 ``[H, W]`` and the confidence in 0 to 1 ``[H, W]`` of each pixel of an image."""
        level = (confidence * LEVELS).clip(0, LEVELS - 1).astype(np.uint8)
        _write_png(label_path(self.raw, index), np.stack([label, level], axis=2), compress_level=1)

    def finish(self, choose: Callable[[np.ndarray], np.ndarray]) -> None:
        """Write the labels of all images with the thresholds, float ``[C]``, that ``choose`` returns for the histogram.

        The histogram counts the pixels of all images by class and floor(64 · confidence), int64 ``[C, 64]``. A
        threshold is rounded up to a 256th, the step of the confidences on disk.
        """
        histogram = self._histogram()
        lowest = np.ceil(choose(histogram.reshape(self.num_classes, BINS, -1).sum(2)) * LEVELS)
        lowest = lowest.clip(0, LEVELS - 1).astype(np.int64)
        for index in distributed.shard_indices(self.length):
            label, level = self._read_present(index)
            kept_label = np.where(level >= lowest[label], label, np.uint8(IGNORE))
            _write_png(label_path(self.folder, index), kept_label)
        kept = np.arange(LEVELS) >= lowest[:, None]
        parts = np.stack([histogram * kept, histogram * ~kept], axis=1)
        summary = {
            "key": self.key,
            "images": self.length,
            "threshold": (lowest / LEVELS).tolist(),
            "histogram": parts.reshape(self.num_classes, 2, BINS, -1).sum(3).tolist(),
        }
        distributed.all_gather_object(None)  # wait until every label is written
        distributed.on_main(lambda: self._close(summary))

    def _histogram(self) -> np.ndarray:
        """Count the pixels of all images by class and confidence level, int64 ``[C, 256]``."""
        histogram = np.zeros((self.num_classes, LEVELS), np.int64)
        for index in distributed.shard_indices(self.length):
            label, level = self._read_present(index)
            pairs = label.astype(np.int64) * LEVELS + level
            histogram += np.bincount(pairs.ravel(), minlength=histogram.size).reshape(histogram.shape)
        return distributed.all_reduce_sum(torch.from_numpy(histogram)).numpy()

    def _close(self, summary: dict[str, Any]) -> None:
        write_json(self.folder / "summary.json", summary | {"checksum": _checksum(summary)})
        shutil.rmtree(self.raw)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            data = label_path(self.raw, index).read_bytes()
            png.parse(data)  # compares the checksums, which Pillow does not
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                pixels = np.array(image)
        except UNREADABLE:
            return None
        return pixels[..., 0], pixels[..., 1]

    def _read_present(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._read(index)
        if found is None:
            path = label_path(self.raw, index)
            raise RuntimeError(f"{path} disappeared while pseudo-labels were being written")
        return found


class PseudoLabelDataset(SegmentationDataset):
    """The images of ``dataset`` with the labels in ``folder``; label files of ``dataset`` are never opened."""

    def __init__(self, dataset: SegmentationDataset, folder: Path) -> None:
        self.name = dataset.name
        self.classes = dataset.classes
        self.on_disk = dataset.on_disk
        self.dataset = dataset
        self.folder = folder
        self.id_map = IdMap({i: i for i in (*range(len(self.classes)), IGNORE)})
        if dataset.spec is not None:
            self.spec = replace(
                dataset.spec,
                id_to_train_id=self.id_map.mapping,
                colour_to_train_id={},
                rgb16=False,
                resize_labels=False,
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample, label = self.dataset.unlabelled(index), self.label(index)
        check_sizes(self.files(index), label.shape, sample.image.shape[:2])
        return Sample(sample.image, label, sample.id)

    def label(self, index: int) -> np.ndarray:
        """Return the pseudo-labels of image ``index`` alone, uint8 ``[H, W]``."""
        path = label_path(self.folder, index)
        return read_label(path, self.id_map)

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label."""
        return self.dataset.unlabelled(index)

    def files(self, index: int) -> SampleFiles:
        """Return the image file of sample ``index`` and the file of its pseudo-labels."""
        return replace(self.dataset.files(index), label=label_path(self.folder, index))


def label_path(folder: Path, index: int) -> Path:
    """Return the path of the label of image ``index``."""
    return folder / f"{index:06d}.png"


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of finished labels: key, images, threshold ``[C]``, histogram ``[C][2][64]``.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
        checksum = summary.pop("checksum")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error
    if checksum != _checksum(summary):
        raise bad(str(path), "another checksum", "the file as it was written")
    return summary


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` atomically."""
    atomic_write(json.dumps(content) + "\n", path)


def _write_png(path: Path, pixels: np.ndarray, **options: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    atomic_write(buffer.getvalue(), path)
