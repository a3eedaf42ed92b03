"""Prediction of labels for image files, folders and videos."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from udas_fast.atomic import atomic_write, make_folder
from udas_fast.data import IMAGE_SUFFIXES, ClassSet, find_bit_depth
from udas_fast.data.bit_depth import rule
from udas_fast.data.classes import CITYSCAPES
from udas_fast.data.regions import Regions, allowing, open_regions
from udas_fast.data.specs import DATASETS
from udas_fast.errors import InputError, bad, unknown
from udas_fast.evaluation import colorize
from udas_fast.inference.model import TrainedModel, read_pixels

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


def _overlay(image: np.ndarray | Regions, label: np.ndarray, classes: ClassSet) -> np.ndarray:
    """Blend image and colours, half and half."""
    image = image.whole() if isinstance(image, Regions) else image
    return ((image.astype(np.uint16) + colorize(label, classes)) // 2).astype(np.uint8)


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


Picture = Callable[[np.ndarray | Regions, np.ndarray, np.ndarray, ClassSet], np.ndarray]
PICTURES: dict[str, Picture] = {
    "ids": lambda image, label, confidence, classes: label,
    "cityscapes_ids": lambda image, label, confidence, classes: cityscapes_ids(classes)[label],
    "colour": lambda image, label, confidence, classes: colorize(label, classes),
    "overlay": lambda image, label, confidence, classes: _overlay(image, label, classes),
    "confidence": lambda image, label, confidence, classes: np.rint(255 * confidence).astype(np.uint8),
}
"""Results that can be written for an image: train ids, Cityscapes' label ids, colours, colours over the image, and
confidence (255 is 1)."""


def media_files(paths: Iterable[Path]) -> list[Path]:
    """List the images and videos among ``paths``, and the images in the folders among them, in order.

    Raises:
        InputError: a path that does not exist, a folder without images, or two files of the same name.
    """
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not path.exists():
            raise bad(f"image {path}", "no such path", "an image, a video or a folder of images")
        if not found:
            others = sorted(p.name for p in path.iterdir() if p.is_file())
            instead = f", but {len(others)} files such as {others[0]}" if others else ""
            raise bad(f"folder {path}", f"no image{instead}", f"files {', '.join(IMAGE_SUFFIXES)}")
        files += found
    stems = [file.stem for file in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise bad(
            "images", f"two of the name {twice[0]!r}", "different names, which the results are named by"
        )
    return files


@dataclass(frozen=True)
class PredictedFiles:
    """Result of :func:`predict_files`: the number of images and frames, and a sentence for each unreadable file."""

    images: int
    problems: tuple[str, ...] = ()


def predict_files(
    trained: TrainedModel,
    files: Sequence[Path],
    out: Path,
    *,
    pictures: Collection[str] = ("ids", "colour"),
    native: bool = False,
    tile: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> PredictedFiles:
    """Write ``NAME_PICTURE.png`` for each image or frame and each of ``pictures``, at its size.

    Photos are turned upright by their EXIF orientation, and so are the results. ``native`` and ``tile``: see
    :meth:`TrainedModel.predict`. Images of 16 bits are scaled from the model's bit depth, or where it has none from the
    least that holds the pixels of some of ``files``; stderr says which. The frames of video NAME are NAME_000000 and so
    on. Files of more than ``max_pixels`` are not decoded whole; None: Pillow's limit. A file that cannot be read is
    reported on stderr, and the others are written.

    Raises:
        InputError: an unknown picture, classes that Cityscapes does not have for its ids, or a folder that cannot be
            written.
    """
    for name in pictures:
        if name not in PICTURES:
            raise unknown("--write", name, PICTURES)
    if "cityscapes_ids" in pictures:
        cityscapes_ids(trained.classes)  # before any work
    make_folder(out)
    found = find_bit_depth([file for file in files if file.suffix.lower() in IMAGE_SUFFIXES])
    bit_depth = trained.bit_depth or found
    if found is not None:
        print(f"NOTICE: 16-bit images are {rule(bit_depth)}", file=sys.stderr)
    count = 0
    problems: list[str] = []
    with allowing(max_pixels), tqdm(unit="image", disable=None) as bar:
        for file in files:
            for stem, image in _readable(file, bit_depth, native and tile is not None, problems):
                try:
                    label, confidence = trained.predict(image, native=native, tile=tile)
                except InputError as error:
                    if not isinstance(image, Regions):  # the file has been read
                        raise
                    _skip(error, problems)
                    continue
                for name in pictures:
                    picture = PICTURES[name](image, label, confidence, trained.classes)
                    atomic_write(_png(picture), out / f"{stem}_{name}.png")
                count += 1
                bar.update()
    return PredictedFiles(count, tuple(problems))


def _skip(error: InputError, problems: list[str]) -> None:
    problems.append(str(error))
    tqdm.write(f"skipped: {error}", file=sys.stderr)


def _readable(
    file: Path, bit_depth: int | None, by_region: bool, problems: list[str]
) -> Iterator[tuple[str, np.ndarray | Regions]]:
    """Yield the frames of ``file`` up to the first that cannot be read, which is reported and added to ``problems``."""
    frames = _frames(file, bit_depth, by_region)
    while True:
        try:
            frame = next(frames, None)
        except InputError as error:
            _skip(error, problems)
            return
        if frame is None:
            return
        yield frame


def _frames(file: Path, bit_depth: int | None, by_region: bool) -> Iterator[tuple[str, np.ndarray | Regions]]:
    """Yield (name, uint8 RGB [H, W, 3]) of an image or of each frame of a video; ``by_region``: parts of files."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        for number, image in enumerate(_video(file)):
            yield f"{file.stem}_{number:06d}", image
    else:
        regions = open_regions(file, bit_depth) if by_region else None
        yield file.stem, regions or read_pixels(file, bit_depth)


def _video(file: Path) -> Iterator[np.ndarray]:
    try:
        import av
    except ModuleNotFoundError:
        expected = 'pip install "udas-fast[video]", or a folder of its frames as images'
        raise bad(f"video {file}", "no PyAV to read it", expected) from None
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise bad(f"video {file}", "no frames in it", "a video")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad(f"video {file}", f"unreadable data ({reason})", "a complete video") from error


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
