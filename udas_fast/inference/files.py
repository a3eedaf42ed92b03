"""Prediction of labels for image files, folders and videos."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from udas_fast import ops
from udas_fast.data import IMAGE_SUFFIXES, find_bit_depth, read_image
from udas_fast.data.bit_depth import rule
from udas_fast.data.regions import Regions, allowing, open_regions
from udas_fast.errors import InputError, bad
from udas_fast.evaluation import label_and_confidence
from udas_fast.inference.model import TrainedModel
from udas_fast.inference.outputs import Frame, Labelled, Output

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
MOST_THREADS = 8  # each holds an image in memory


def media_files(paths: Iterable[Path], *leave_out: Path | None) -> dict[Path, str]:
    """Return the images and videos among ``paths``, and the images in the folders among them, in order.

    Folders are walked into, but for hidden ones and those of ``leave_out``.

    Returns:
        The name of the results of each file: its path below the folder that was given, without suffix.

    Raises:
        InputError: a path that does not exist, a folder without images, or two files of the same name.
    """
    files: dict[Path, str] = {}
    names: set[str] = set()
    left_out = {path.resolve() for path in leave_out if path is not None}
    for path in paths:
        if not path.exists():
            raise bad(f"image {path}", "no such path", "an image, a video or a folder of images")
        found = list(_walk(path, left_out)) if path.is_dir() else [path]
        if not found:
            others = sorted(p.name for p in path.rglob("*") if p.is_file())
            instead = f", but {len(others)} files such as {others[0]}" if others else ""
            raise bad(f"folder {path}", f"no image{instead}", f"files {', '.join(IMAGE_SUFFIXES)}")
        for file in found:
            name = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("").as_posix()
            if name in names:
                raise bad(
                    "images", f"two of the name {name!r}", "different names, which the results are named by"
                )
            names.add(name)
            files[file] = name
    return files


def _walk(folder: Path, left_out: Collection[Path]) -> Iterator[Path]:
    """Yield the images below ``folder``, those of a folder before those of its folders."""
    for place, below, names in os.walk(folder):
        below[:] = sorted(
            n for n in below if not n.startswith(".") and Path(place, n).resolve() not in left_out
        )
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(place, name)


@dataclass(frozen=True)
class PredictedFiles:
    """Result of :func:`predict_files`: the number of images and frames, and a sentence for each unreadable file."""

    images: int
    problems: tuple[str, ...] = ()


def predict_files(
    trained: TrainedModel,
    files: Mapping[Path, str],
    outputs: Sequence[Output],
    *,
    native: bool = False,
    tile: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> PredictedFiles:
    """Label each of ``files`` (:func:`media_files`), an image or the frames of a video, and write it to ``outputs``.

    Photos are turned upright by their EXIF orientation, and so are the results. ``native`` and ``tile``: see
    :meth:`TrainedModel.predict`. Images of 16 bits are scaled from the model's bit depth, or where it has none from the
    least that holds the pixels of some of ``files``; stderr says which. The frames of video NAME are NAME_000000 and so
    on. Files of more than ``max_pixels`` are not decoded whole; None: Pillow's limit. A file that cannot be read is
    reported on stderr, and the others are labelled. Threads decode the next images and encode the results of the last
    ones while the network runs.

    Raises:
        InputError: a folder or file that cannot be written.
    """
    found = find_bit_depth([file for file in files if file.suffix.lower() in IMAGE_SUFFIXES])
    bit_depth = trained.bit_depth or found
    if found is not None:
        print(f"NOTICE: 16-bit images are {rule(bit_depth)}", file=sys.stderr)
    by_region = native and tile is not None
    readers = (_frames(file, name, bit_depth, by_region) for file, name in files.items())
    with_entropy = any(output.needs_entropy for output in outputs)
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    count, problems = 0, list[str]()
    written: deque[Future[None]] = deque()
    with (
        allowing(max_pixels),
        warnings.catch_warnings(),
        tqdm(unit="image", disable=None) as bar,
        ThreadPoolExecutor(threads) as pool,
        ThreadPoolExecutor(1) as writer,  # one, so that frames are written in their order
    ):
        warnings.simplefilter("ignore")  # Pillow's, about sizes, palettes and metadata
        for frame in _read_ahead(readers, pool, threads):
            item = _label(trained, frame, native, tile, with_entropy) if isinstance(frame, Frame) else frame
            if isinstance(item, InputError):
                problems.append(str(item))
                tqdm.write(f"skipped: {item}", file=sys.stderr)
                continue
            prepared = [pool.submit(output.prepare, item) for output in outputs]
            written.append(writer.submit(_write_all, prepared))
            if len(written) > threads:
                written.popleft().result()
            count += 1
            bar.update()
        for last in written:
            last.result()
    for output in outputs:
        output.close()
    return PredictedFiles(count, tuple(problems))


def _read_ahead(
    readers: Iterable[Iterator[Frame]], pool: Executor, ahead: int
) -> Iterator[Frame | InputError]:
    """Yield the frames of ``readers`` one after the other, while ``pool`` reads the next one of the ``ahead`` first.

    The error of a reader takes the place of its frame, and of those after it.
    """
    coming = iter(readers)
    reading: deque[tuple[Iterator[Frame], Future[Frame | None]]] = deque()
    while True:
        for reader in islice(coming, ahead - len(reading)):
            reading.append((reader, pool.submit(next, reader, None)))
        if not reading:
            return
        reader, future = reading.popleft()
        try:
            frame = future.result()
        except InputError as error:
            yield error
            continue
        if frame is not None:
            if frame.rate is not None:  # a video has more of them
                reading.appendleft((reader, pool.submit(next, reader, None)))
            yield frame


def _label(
    trained: TrainedModel, frame: Frame, native: bool, tile: tuple[int, int] | None, with_entropy: bool
) -> Labelled | InputError:
    """Return the labels of a frame, or the error of a file whose regions cannot be read."""
    try:
        output, size = trained.logits(frame.image, native=native, tile=tile)
    except InputError as error:
        if isinstance(frame.image, Regions):
            return error
        raise  # the file has been read
    label, confidence = label_and_confidence(output, size, trained.temperature)
    entropy = math.nan
    if with_entropy:
        logits = output.primary / trained.temperature
        entropy = ops.entropy(logits, size, align_corners=output.align_corners).item()
    return Labelled(frame, label.cpu().numpy(), confidence.cpu().numpy(), entropy)


def _write_all(prepared: Sequence[Future[Callable[[], None]]]) -> None:
    for one in prepared:
        one.result()()


def _frames(file: Path, name: str, bit_depth: int | None, by_region: bool) -> Iterator[Frame]:
    """Yield an image, or each frame of a video; ``by_region``: parts of files."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        for number, (image, rate) in enumerate(_video(file)):
            yield Frame(f"{name}_{number:06d}", file, image, rate)
    else:
        regions = open_regions(file, bit_depth) if by_region else None
        yield Frame(name, file, regions or read_image(file, bit_depth=bit_depth))


def _video(file: Path) -> Iterator[tuple[np.ndarray, Fraction]]:
    """Yield each frame, uint8 RGB ``[H, W, 3]``, and the frames in a second."""
    try:
        import av
    except ModuleNotFoundError:
        expected = 'pip install "udas-fast[video]", or a folder of its frames as images'
        raise bad(f"video {file}", "no PyAV to read it", expected) from None
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise bad(f"video {file}", "no frames in it", "a video")
            rate = container.streams.video[0].average_rate or Fraction(25)
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24"), rate
    except av.FFmpegError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad(f"video {file}", f"unreadable data ({reason})", "a complete video") from error
