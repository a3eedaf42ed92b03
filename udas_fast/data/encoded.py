"""Files as bytes for a decoder other than Pillow's, checked and made plain by their headers.

What a decoder might read otherwise than :mod:`udas_fast.data.files` (palettes, CMYK, 16-bit images, WebP, …)
is decoded there and handed on uncompressed; so is a file that seems damaged, because only that module
judges files.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from udas_fast.data import png
from udas_fast.data.files import UNREADABLE, read_ids, read_image

Size = tuple[int, int]


def encoded_image(path: Path, *, plain: bool = False) -> tuple[bytes, Size]:
    """The image file and its (H, W); ``plain``, or an unusual or damaged file: pixels as they are, as PPM.

    Raises InputError as :func:`udas_fast.data.read_image` does.
    """
    if not plain:
        try:
            data = path.read_bytes()
            if (size := _ordinary(data)) is not None:
                return data, size
        except UNREADABLE:
            pass
    pixels = read_image(path)
    return _netpbm(b"P6", pixels), pixels.shape[:2]


def _ordinary(data: bytes) -> Size | None:
    """The size of an RGB or grey JPEG or 8-bit PNG, None for any other file."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if image.mode not in ("RGB", "L") or "transparency" in image.info:
            return None
        if image.format == "PNG":
            header, _ = png.parse(data)
            if header.depth != 8 or header.interlaced:
                return None
        elif image.info.get("adobe_transform") == 0:  # RGB that is not stored as YCbCr
            return None
        return image.size[1], image.size[0]


def encoded_ids(path: Path, *, wide: bool, plain: bool = False) -> tuple[bytes, Size]:
    """A label file and its (H, W), such that a decoder that knows no palettes finds the ids.

    An 8-bit palette PNG becomes a grey one with the same pixels; other files that :func:`read_ids` can read,
    or all where ``plain``, are handed on as PGM. With ``wide``, a 16-bit PNG keeps its channels.
    Raises InputError as :func:`read_ids` does.
    """
    if not plain:
        try:
            data = path.read_bytes()
            header, _ = png.parse(data)
            size = (header.height, header.width)
            if not header.interlaced:
                if wide and header.depth == 16 and header.colour in (png.RGB, png.RGBA):
                    return data, size
                if not wide and header.depth == 8 and header.colour == png.GREY:
                    return data, size
                if not wide and header.depth == 8 and header.colour == png.PALETTE:
                    return png.as_grey(data), size
        except UNREADABLE:
            pass
    ids = read_ids(path, wide=wide)
    if not wide:
        ids = ids.clip(max=255).astype(np.uint8)
    return _netpbm(b"P5", ids), ids.shape


def _netpbm(kind: bytes, pixels: np.ndarray) -> bytes:
    """PPM (``P6``) or PGM (``P5``), 8 or 16 bits, of uint8 or uint16 ``[H, W(, 3)]``."""
    height, width = pixels.shape[:2]
    highest = np.iinfo(pixels.dtype).max
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    return kind + f"\n{width} {height}\n{highest}\n".encode() + big_endian.tobytes()
