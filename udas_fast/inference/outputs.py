"""Outputs of `predict` for each image: pictures, films, a dataset, a table."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from udas_fast.atomic import atomic_write, make_folder, writing
from udas_fast.data import IGNORE, ClassSet
from udas_fast.data.classes import CITYSCAPES
from udas_fast.data.regions import Regions
from udas_fast.data.specs import DATASETS
from udas_fast.errors import bad, unknown
from udas_fast.evaluation import colorize


@dataclass(frozen=True)
class Frame:
    """One image, or one frame of a video.

    Attributes:
        name: of its results: the path below the folder that was given, without suffix; of a frame with its number.
        file: that it is read from.
        image: uint8 RGB ``[H, W, 3]``, or a file of which regions are read.
        rate: frames in a second of its video; None: an image.
    """

    name: str
    file: Path
    image: np.ndarray | Regions
    rate: Fraction | None = None


@dataclass(frozen=True)
class Labelled:
    """A frame with train ids uint8 ``[H, W]``, confidence float32 ``[H, W]`` and its mean entropy, 0 to 1.

    The entropy is NaN where no output needs it.
    """

    frame: Frame
    label: np.ndarray
    confidence: np.ndarray
    entropy: float = math.nan


class Output(Protocol):
    """Something that is written of every labelled frame.

    Attributes:
        needs_entropy: whether it writes :attr:`Labelled.entropy`.
    """

    needs_entropy: bool

    def prepare(self, item: Labelled) -> Callable[[], None]:
        """Encode ``item``, in any thread; return the function that writes it, which is called in the frames' order."""

    def close(self) -> None:
        """Finish after the last frame."""


Picture = Callable[[Labelled, ClassSet], np.ndarray]


def _overlay(item: Labelled, classes: ClassSet) -> np.ndarray:
    """Blend image and colours, half and half."""
    image = item.frame.image
    image = image.whole() if isinstance(image, Regions) else image
    return ((image.astype(np.uint16) + colorize(item.label, classes)) // 2).astype(np.uint8)


def cityscapes_ids(classes: ClassSet) -> np.ndarray:
    """Return Cityscapes' label id of each of ``classes``, uint8 ``[C]``, as its test server expects them in images.

    Raises:
        InputError: a class that Cityscapes does not score.
    """
    ids = {train_id: label_id for label_id, train_id in DATASETS["cityscapes"].id_to_train_id.items()}
    by_name = {name: ids[train_id] for train_id, name in enumerate(CITYSCAPES.names)}
    for name in classes.names:
        if name not in by_name:
            raise bad("--write cityscapes_ids", f"a model with class {name!r}", "one of Cityscapes' classes")
    return np.array([by_name[name] for name in classes.names], np.uint8)


PICTURES: dict[str, Picture] = {
    "ids": lambda item, classes: item.label,
    "cityscapes_ids": lambda item, classes: cityscapes_ids(classes)[item.label],
    "colour": lambda item, classes: colorize(item.label, classes),
    "overlay": _overlay,
    "confidence": lambda item, classes: np.rint(255 * item.confidence).astype(np.uint8),
}
"""Results that can be drawn for an image: train ids, Cityscapes' label ids, colours, colours over the image, and
confidence (255 is 1)."""


class Pictures:
    """``NAME_PICTURE.png`` for each of ``names`` of :data:`PICTURES`, in ``folder``.

    With ``films`` a video gives one ``NAME_PICTURE.mp4`` in the place of its frames' files.

    Raises:
        InputError: an unknown picture, classes that Cityscapes does not have for its ids, or ids in a film, which
            changes them.
    """

    needs_entropy = False

    def __init__(
        self, folder: Path, names: Collection[str], classes: ClassSet, *, films: bool = False
    ) -> None:
        for name in names:
            if name not in PICTURES:
                raise unknown("--write", name, PICTURES)
        if "cityscapes_ids" in names:
            cityscapes_ids(classes)  # before any work
        if films and (ids := {"ids", "cityscapes_ids"} & {*names}):
            found = f"--write {ids.pop()}"
            raise bad("--film", found, "colour, overlay or confidence, as a film does not keep ids")
        make_folder(folder)
        self.folder, self.names, self.classes, self.films = folder, names, classes, films
        self._open: dict[str, _Film] = {}
        self._video: Path | None = None

    def prepare(self, item: Labelled) -> Callable[[], None]:
        """Draw each picture, and encode those that are files."""
        frame = item.frame
        pictures = {name: PICTURES[name](item, self.classes) for name in self.names}
        if self.films and frame.rate is not None:
            return partial(self._add_to_films, frame, frame.rate, pictures)
        files = {self.folder / f"{frame.name}_{name}.png": png(pixels) for name, pixels in pictures.items()}
        return partial(_write_files, files)

    def _add_to_films(self, frame: Frame, rate: Fraction, pictures: Mapping[str, np.ndarray]) -> None:
        """Write the next frame of each film, the first of a new one where another video begins."""
        if frame.file != self._video:
            self.close()
        self._video = frame.file
        stem = frame.name.rpartition("_")[0]
        for name, pixels in pictures.items():
            if name not in self._open:
                self._open[name] = _Film(self.folder / f"{stem}_{name}.mp4", rate, pixels)
            self._open[name].add(pixels)

    def close(self) -> None:
        """Finish the films."""
        for film in self._open.values():
            film.close()
        self._open.clear()


class _Film:
    """An H.264 film of the frames that are added, in its place once it is whole."""

    def __init__(self, path: Path, rate: Fraction, first: np.ndarray) -> None:
        import av

        make_folder(path.parent)
        self.path, self._temporary = path, path.with_name(path.name + ".tmp")
        # The format takes sides of even length only.
        self.height, self.width = (side - side % 2 for side in first.shape[:2])
        with writing(path):
            self._container = av.open(str(self._temporary), "w", format="mp4")
        self._stream: Any = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = self.width, self.height, "yuv420p"

    def add(self, pixels: np.ndarray) -> None:
        import av

        pixels = np.ascontiguousarray(pixels[: self.height, : self.width])
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.ndim == 3 else "gray")
        with writing(self.path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        with writing(self.path):
            self._container.mux(self._stream.encode())
            self._container.close()
            self._temporary.replace(self.path)


class DatasetFolder:
    """A dataset that ``folder:ROOT`` reads: images and ids of split ``train``, and ``classes.txt``.

    Labels are PNG files with the classes' palette. Image files are linked, or copied where they cannot be; frames of a
    video are written. Names of folders become a part of the image's name.

    Args:
        root: of the dataset, new or empty: nobody's labels are replaced.
        classes: names in the order of the ids.
        min_confidence: pixels below it are 255, which no loss counts.

    Raises:
        InputError: the folder has files, or two images have one name.
    """

    needs_entropy = False

    def __init__(self, root: Path, classes: ClassSet, min_confidence: float = 0.0) -> None:
        make_folder(root)
        if any(root.iterdir()):
            raise bad(f"--as-dataset {root}", "a folder with files", "a new or an empty one")
        self._names: set[str] = set()
        self.images, self.labels = (root / kind / "train" for kind in ("images", "labels"))
        for folder in (self.images, self.labels):
            make_folder(folder)
        self.min_confidence = min_confidence
        self._palette = palette(classes)
        atomic_write("".join(f"{name}\n" for name in classes.names), root / "classes.txt")

    def prepare(self, item: Labelled) -> Callable[[], None]:
        """Encode the label, and the image where it is a frame of a video."""
        frame = item.frame
        label = np.where(item.confidence >= self.min_confidence, item.label, np.uint8(IGNORE))
        picture = Image.fromarray(label)
        picture.putpalette(self._palette)
        image = png(frame.image) if frame.rate is not None and isinstance(frame.image, np.ndarray) else None
        return partial(self._write, frame, _encoded(picture), image)

    def _write(self, frame: Frame, label: bytes, image: bytes | None) -> None:
        """Write the label, and write or link the image."""
        name = frame.name.replace("/", "_")
        if name in self._names:
            raise bad(f"image {frame.name}", f"another one of the name {name!r}", "different names")
        self._names.add(name)
        atomic_write(label, self.labels / f"{name}.png")
        if image is None:
            _link(frame.file, self.images / f"{name}{frame.file.suffix.lower()}")
        else:
            atomic_write(image, self.images / f"{name}.png")

    def close(self) -> None:
        """Do nothing: every file is whole."""


class Table:
    """A CSV file with a line for each image: mean confidence and entropy, and the share of each class, 0 to 1."""

    needs_entropy = True

    def __init__(self, path: Path, classes: ClassSet) -> None:
        self.path, self.count = path, len(classes)
        self.rows: list[list[object]] = [["image", "confidence", "entropy", *classes.names]]

    def prepare(self, item: Labelled) -> Callable[[], None]:
        """Count the pixels of each class."""
        shares = np.bincount(item.label.ravel(), minlength=self.count)[: self.count] / item.label.size
        values = (item.confidence.mean(), item.entropy, *shares)
        row: list[object] = [item.frame.name, *(f"{value:.4f}" for value in values)]
        return partial(self.rows.append, row)

    def close(self) -> None:
        """Write the file."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(self.rows)
        make_folder(self.path.parent)
        atomic_write(text.getvalue(), self.path)


def palette(classes: ClassSet) -> bytes:
    """Return the colours of the classes as a palette of 256; ids that are none are white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(classes)] = classes.palette
    return table.tobytes()


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 ``[H, W]`` or ``[H, W, 3]``."""
    return _encoded(Image.fromarray(pixels))


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def _write_files(files: Mapping[Path, bytes]) -> None:
    for path, content in files.items():
        make_folder(path.parent)
        atomic_write(content, path)


def _link(file: Path, path: Path) -> None:
    """Make ``path`` another name of ``file``, or a copy where the file system has no such names."""
    with writing(path):
        try:
            os.link(file.resolve(), path)
        except OSError:
            shutil.copyfile(file, path)
