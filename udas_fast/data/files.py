"""Image and label files to arrays; whatever is wrong with a file becomes one sentence that names it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from udas_fast.data import png
from udas_fast.errors import InputError, bad

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# MPO (JPEGs of phones) is opened by the JPEG reader and is no name of its own to Pillow.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
LABEL_SUFFIX = ".png"

# What Pillow raises on damaged files, found by feeding it some.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "data that is no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"unreadable data ({error})"


def read_image(source: Path | Image.Image, *, upright: bool = False) -> np.ndarray:
    """The image as uint8 ``[H, W, 3]`` RGB; grey, palette, CMYK and 16-bit images are converted.

    An EXIF orientation is ignored, because labels are drawn on the stored pixels; ``upright`` turns the image by it.
    Raises InputError naming the file where it is missing, truncated or no such image.
    """
    name = "image" if isinstance(source, Image.Image) else f"image {source}"
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, name, upright)
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            return _rgb(image, name, upright)
    except InputError:
        raise
    except UNREADABLE as error:
        raise bad(name, _reason(error), "a whole image file") from error


def _rgb(image: Image.Image, name: str, upright: bool) -> np.ndarray:
    image.load()  # a PNG may hold its orientation after the pixels
    if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise bad(name, "32-bit grey pixels", "8 or 16 bits per channel")
    return np.array(image.convert("RGB"))


def read_ids(path: Path, *, wide: bool = False) -> np.ndarray:
    """The class ids stored in a label file, ``[H, W]``, uint8 or uint16, as they are in the file.

    ``wide=False``: PNGs of 8-bit palette (the index is read, never the colour), 8-bit grey or 16-bit grey.
    ``wide=True``: PNGs of 16-bit RGB(A), id in the first channel (SYNTHIA).
    Raises InputError naming the file where it is missing, damaged or of another kind.
    """
    kinds = "a 16-bit RGB PNG" if wide else "a PNG whose pixels are class ids (palette or grey)"
    try:
        data = path.read_bytes()
        header, pixels = png.parse(data)
        if wide:
            return png.first_channel(header, pixels)
        # Pillow scales grey of 1, 2 and 4 bits to the range of 8, which changes the ids.
        grey = header.colour == png.GREY and header.depth >= 8
        if not grey and header.colour != png.PALETTE:
            raise bad(f"label {path}", header, kinds)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(image)
    except InputError:
        raise
    except ValueError as error:
        raise bad(f"label {path}", error, kinds) from error
    except UNREADABLE as error:
        raise bad(f"label {path}", _reason(error), kinds) from error


class IdMap:
    """File ids to train ids by look-up; the ids that are not in ``mapping`` are errors.

    ``mapping`` is ``{file id 0..255: train id}``, train id 255 for what is declared but ignored.
    """

    def __init__(self, mapping: dict[int, int]) -> None:
        if mapping.get(255, 255) != 255:
            raise bad("id map", f"class {mapping[255]} for id 255", "255, which is what padding has")
        self.mapping = dict(mapping)
        self.table = np.full(256, 255, np.uint8)
        self.declared = np.zeros(256, bool)
        for file_id, train_id in mapping.items():
            self.table[file_id] = train_id
            self.declared[file_id] = True

    def __call__(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Train ids, uint8 ``[H, W]``; raises InputError naming ``path`` and the undeclared ids."""
        if ids.max(initial=0) > 255 or not self.declared[ids].all():
            found = [int(i) for i in np.unique(ids) if i > 255 or not self.declared[i]]
            listed = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
            raise bad(f"label {path}", f"id {listed}", f"ids among {_ranges(self.mapping)}")
        return self.table[ids]


def _ranges(ids: dict[int, int]) -> str:
    """``0-33, 255`` for those ids."""
    parts: list[list[int]] = []
    for i in sorted(ids):
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
