"""Large images read region by region: TIFF files, whose tiles or strips are compressed one by one."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from udas_fast.data.files import UNREADABLE, read_image
from udas_fast.errors import InputError

STRIP = 1 << 24  # bytes of rows of an uncompressed file that are read at once
WIDTH, HEIGHT, BITS, COMPRESSION, ORIENTATION, SAMPLES = 256, 257, 258, 259, 274, 277
STRIP_OFFSETS, ROWS, STRIP_SIZES, PLANES = 273, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = 322, 323, 324, 325
# What says how the pixels of a tile are to be read: colours, palette, predictor, JPEG's tables and so on.
KEPT = (BITS, COMPRESSION, 262, 266, SAMPLES, PLANES, 317, 320, 338, 339, 347, 529, 530, 531, 532)
PACKED = 1  # COMPRESSION of a file without any


@contextmanager
def allowing(pixels: int | None) -> Iterator[None]:
    """Let Pillow decode images of up to ``pixels`` inside the context; None: as many as it decodes anyway.

    Its limit is a global of its own, from half of which on it warns.
    """
    if pixels is None:
        yield
        return
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, -(-pixels // 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@dataclass(frozen=True)
class _Block:
    """A tile or strip: its place in the image and its bytes in the file; ``height`` and ``width`` as stored."""

    top: int
    left: int
    height: int
    width: int
    offset: int
    size: int


class Regions:
    """An image file of which regions are read, as :func:`udas_fast.data.read_image` reads the whole.

    Attributes:
        path: of the file.
        height, width: in pixels.
    """

    def __init__(self, path: Path, bit_depth: int | None = None) -> None:
        self.path, self.bit_depth = path, bit_depth
        with allowing(1 << 62), Image.open(path, formats=("TIFF",)) as image:
            tags = image.tag_v2
            self.width, self.height = image.size
            self._prefix = tags.prefix
            self._tags = {tag: (tags[tag], tags.tagtype[tag]) for tag in KEPT if tag in tags}
            self._blocks = _blocks(tags, self.width, self.height)
        self._decoded: dict[_Block, np.ndarray] = {}

    def read(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Return the pixels of rows ``top`` to ``bottom`` and columns ``left`` to ``right``, uint8 RGB ``[h, w, 3]``.

        Blocks are kept for the next region of the same rows.

        Raises:
            InputError: the file is damaged there.
        """
        rows = [block for block in self._blocks if block.top < bottom and block.top + block.height > top]
        kept = set(rows)
        self._decoded = {block: pixels for block, pixels in self._decoded.items() if block in kept}
        out = np.zeros((bottom - top, right - left, 3), np.uint8)
        for block in rows:
            if block.left >= right or block.left + block.width <= left:
                continue
            if block not in self._decoded:
                self._decoded[block] = self._decode(block)
            first, last = max(top, block.top), min(bottom, block.top + block.height)
            begin, end = max(left, block.left), min(right, block.left + block.width)
            part = self._decoded[block][
                first - block.top : last - block.top, begin - block.left : end - block.left
            ]
            out[first - top : last - top, begin - left : end - left] = part
        return out

    def whole(self) -> np.ndarray:
        """Return all pixels."""
        return self.read(0, 0, self.height, self.width)

    def _decode(self, block: _Block) -> np.ndarray:
        """Decode a block as a TIFF of its own with one strip."""
        with self.path.open("rb") as file:
            file.seek(block.offset)
            data = file.read(block.size)
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=self._prefix)
        for tag, (value, kind) in self._tags.items():
            directory.tagtype[tag] = kind
            directory[tag] = value
        for tag, number in ((WIDTH, block.width), (HEIGHT, block.height), (ROWS, block.height)):
            directory[tag] = number
        directory[STRIP_OFFSETS], directory[STRIP_SIZES] = 0, len(data)  # the offset is after the directory
        order = "little" if self._prefix == b"II" else "big"
        head = self._prefix + (42).to_bytes(2, order) + (8).to_bytes(4, order)  # type: ignore[arg-type]  # a literal
        try:
            return read_image(io.BytesIO(head + directory.tobytes(8) + data), bit_depth=self.bit_depth)  # type: ignore[arg-type]
        except InputError as error:
            where = f"image {self.path}, rows {block.top} to {block.top + block.height}"
            raise InputError(f"{where}: {str(error).partition(': ')[2]}") from error


def open_regions(path: str | os.PathLike[str], bit_depth: int | None = None) -> Regions | None:
    """Open an image file of which regions can be read; None for any other file, which is read whole or refused."""
    try:
        return Regions(Path(path), bit_depth)
    except UNREADABLE:
        return None


def _blocks(tags: TiffImagePlugin.ImageFileDirectory_v2, width: int, height: int) -> list[_Block]:
    """Return the tiles or strips of a TIFF; raise ValueError where it has to be read whole."""
    if tags.get(PLANES, 1) != 1 or tags.get(ORIENTATION, 1) != 1:
        raise ValueError("channels that are stored one by one, or turned pixels")
    if TILE_OFFSETS in tags:
        across, down = tags[TILE_WIDTH], tags[TILE_HEIGHT]
        places = [(top, left) for top in range(0, height, down) for left in range(0, width, across)]
        pairs = zip(places, tags[TILE_OFFSETS], tags[TILE_SIZES], strict=True)
        return [_Block(*place, down, across, offset, size) for place, offset, size in pairs]
    rows = min(tags.get(ROWS, height), height)
    tops = range(0, height, rows)
    strips = zip(tops, tags[STRIP_OFFSETS], tags[STRIP_SIZES], strict=True)
    blocks = [_Block(top, 0, min(rows, height - top), width, offset, size) for top, offset, size in strips]
    if tags.get(COMPRESSION, PACKED) == PACKED:
        blocks = [part for block in blocks for part in _rows(block)]
    if len(blocks) == 1:
        raise ValueError("one strip")
    return blocks


def _rows(block: _Block) -> Iterator[_Block]:
    """Cut an uncompressed strip into shorter ones."""
    stride = block.size // block.height
    step = max(1, STRIP // max(1, stride))
    for first in range(0, block.height, step):
        count = min(step, block.height - first)
        yield _Block(block.top + first, 0, count, block.width, block.offset + first * stride, count * stride)
