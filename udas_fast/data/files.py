"""Image and label files as arrays, or as bytes for another decoder; errors are one sentence that names the file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from udas_fast.data import png
from udas_fast.data.bit_depth import check_bit_depth, is_deep, low_bytes, spread, to_8_bits
from udas_fast.data.classes import IGNORE
from udas_fast.errors import InputError, bad

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# MPO (JPEGs of phones) is opened by Pillow's JPEG reader and needs no name of its own here.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
READABLE = "a complete JPEG, PNG, BMP, WebP or TIFF file"
LABEL_SUFFIX = ".png"

# The exceptions of Pillow for damaged files, found by experiment.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Size = tuple[int, int]


def read_image(source: Path | Image.Image, *, bit_depth: int | None = None) -> np.ndarray:
    """Read an image as uint8 ``[H, W, 3]`` RGB; grey, palette, CMYK and 16-bit images are converted.

    It is turned upright by its EXIF orientation, as viewers and labelling tools show it. Images of 16 bits are scaled
    from ``bit_depth`` bits, those of the sensor; None: from all 16.

    Raises:
        InputError: the file is missing, truncated or not such an image, or has 16 bits and not that depth.
    """
    if not isinstance(source, (str, os.PathLike, Image.Image)) and not hasattr(source, "read"):
        raise bad("image", type(source).__name__, "a path or a Pillow image")
    check_bit_depth(bit_depth)
    name = "image" if isinstance(source, Image.Image) else f"image {source}"
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, name, bit_depth)
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            if not is_deep(image):
                return _rgb(image, name, bit_depth)
        return _three_channels(to_8_bits(_read_deep(source), bit_depth, name))
    except InputError:
        raise
    except UNREADABLE as error:
        raise bad(name, _reason(error), READABLE) from error


def _rgb(image: Image.Image, name: str, bit_depth: int | None) -> np.ndarray:
    image = _upright(image)
    if image.mode.startswith("I;16"):
        return _three_channels(to_8_bits(np.asarray(image), bit_depth, name))
    if image.mode in ("I", "F"):
        raise bad(name, "32-bit grey pixels", "8 or 16 bits per channel")
    return np.array(image.convert("RGB"))


def _read_deep(source: Path) -> np.ndarray:
    """Return the upright pixels of a 16-bit file without its alpha, uint16 ``[H, W(, 3)]``."""
    with Image.open(source, formats=IMAGE_FORMATS) as image:
        image = _upright(image)
        if image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)
        high = np.asarray(image).astype(np.uint16) << 8
        if image.mode == "LA":  # whose low bytes Pillow cannot return
            return high[..., 0]
    with Image.open(source, formats=IMAGE_FORMATS) as image:
        return (high | np.asarray(_upright(low_bytes(image))))[..., :3]


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _upright(image: Image.Image) -> Image.Image:
    """Return ``image``, decoded, as its EXIF orientation turns it."""
    image.load()  # a PNG may hold its orientation after the pixels
    return ImageOps.exif_transpose(image) if _is_turned(image) else image


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


@dataclass(frozen=True)
class ImageHeader:
    """EXIF orientation of an image file, 1 to 8, and whether it has 16 bits a channel."""

    orientation: int = 1
    deep: bool = False


def read_header(path: Path) -> ImageHeader:
    """Read the header of an image file; that of an upright 8-bit image where it cannot be read."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            turn = Image.Image.getexif(image).get(
                ExifTags.Base.Orientation, 1
            )  # a PNG's own decodes its pixels
            return ImageHeader(turn if turn in range(1, 9) else 1, is_deep(image))
    except UNREADABLE:
        return ImageHeader()


def find_bit_depth(paths: Sequence[Path]) -> int | None:
    """Return the least number of bits, from 8, that holds the pixels of the 16-bit images among ``paths``.

    Looks at a few that are evenly spread; None without a 16-bit image among them.
    """
    highest = -1
    for path in spread(paths):
        if read_header(path).deep:
            try:
                highest = max(highest, int(_read_deep(path).max(initial=0)))
            except UNREADABLE:
                continue  # whoever reads it says why
    return None if highest < 0 else max(8, highest.bit_length())


def read_ids(path: Path, *, rgb16: bool = False) -> np.ndarray:
    """Read the class ids stored in a label file, ``[H, W]``, uint8 or uint16, unchanged.

    They are turned upright as :func:`read_image` turns images.

    ``rgb16=False``: PNGs with an 8-bit palette (the index is read, never the colour), 8-bit grey or 16-bit grey.
    ``rgb16=True``: PNGs of 16-bit RGB(A), id in the first channel (SYNTHIA).

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    kinds = "a 16-bit RGB PNG" if rgb16 else "a PNG whose pixels are class ids (palette or grey)"
    try:
        data = path.read_bytes()
        header, pixels = png.parse(data)
        if rgb16:
            return png.first_channel(header, pixels)
        # Pillow scales grey of 1, 2 and 4 bits to the range of 8, which changes the ids.
        grey = header.colour == png.GREY and header.depth >= 8
        if not grey and header.colour != png.PALETTE:
            raise bad(f"label {path}", header, kinds)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(_upright(image))
    except InputError:
        raise
    except ValueError as error:
        raise bad(f"label {path}", error, kinds) from error
    except UNREADABLE as error:
        raise bad(f"label {path}", _reason(error), kinds) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "data that is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"unreadable data ({error})"


def encoded_image(path: Path, *, bit_depth: int | None = None, as_pixels: bool = False) -> tuple[bytes, Size]:
    """Return an image file for a decoder other than Pillow, and its (H, W).

    What another decoder might read differently from :func:`read_image` (images turned by EXIF, palettes, CMYK, 16-bit
    images, WebP, …) is decoded here and returned as PPM; so is a file that looks damaged, because only
    :func:`read_image` judges files, and every file if ``as_pixels``.

    Raises:
        InputError: as :func:`read_image`.
    """
    if not as_pixels:
        try:
            data = path.read_bytes()
            if (size := _plain_image_size(data)) is not None:
                return data, size
        except UNREADABLE:
            pass
    pixels = read_image(path, bit_depth=bit_depth)
    return _netpbm(b"P6", pixels), _size(pixels)


def encoded_ids(path: Path, *, rgb16: bool, as_pixels: bool = False) -> tuple[bytes, Size]:
    """Return a label file for a decoder that ignores palettes, and its (H, W).

    An 8-bit palette PNG becomes a grey one with the same pixels; other files that :func:`read_ids` can read,
    or all if ``as_pixels``, are returned as PGM. With ``rgb16`` a 16-bit PNG keeps its channels.

    Raises:
        InputError: as :func:`read_ids`.
    """
    if not as_pixels:
        try:
            data = path.read_bytes()
            header, _ = png.parse(data)
            size = (header.height, header.width)
            if not (header.interlaced or header.turned):
                if rgb16 and header.depth == 16 and header.colour in (png.RGB, png.RGBA):
                    return data, size
                if not rgb16 and header.depth == 8 and header.colour == png.GREY:
                    return data, size
                if not rgb16 and header.depth == 8 and header.colour == png.PALETTE:
                    return png.palette_to_grey(data), size
        except UNREADABLE:
            pass
    ids = read_ids(path, rgb16=rgb16)
    if not rgb16:
        ids = ids.clip(max=IGNORE).astype(np.uint8)
    return _netpbm(b"P5", ids), _size(ids)


def _plain_image_size(data: bytes) -> Size | None:
    """Return the size of an RGB or grey JPEG or 8-bit PNG, None for any other file."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if image.mode not in ("RGB", "L") or "transparency" in image.info:
            return None
        if image.format == "PNG":
            header, _ = png.parse(data)
            if header.depth != 8 or header.interlaced or header.turned:
                return None
        elif (
            _is_turned(image) or image.info.get("adobe_transform") == 0
        ):  # 0: RGB that is not stored as YCbCr
            return None
        return image.size[1], image.size[0]


def _size(pixels: np.ndarray) -> Size:
    return pixels.shape[0], pixels.shape[1]


def _netpbm(kind: bytes, pixels: np.ndarray) -> bytes:
    """Encode uint8 or uint16 ``[H, W(, 3)]`` as PPM (``P6``) or PGM (``P5``) of 8 or 16 bits."""
    height, width = pixels.shape[:2]
    highest = np.iinfo(pixels.dtype).max
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    return kind + f"\n{width} {height}\n{highest}\n".encode() + big_endian.tobytes()


class IdMap:
    """Look-up of train ids by the ids in files; ids that are not in ``mapping`` are errors.

    ``mapping`` is ``{file id 0..255: train id}``, train id 255 for ids that are declared but ignored.
    """

    def __init__(self, mapping: dict[int, int]) -> None:
        if mapping.get(IGNORE, IGNORE) != IGNORE:
            raise bad("id map", f"class {mapping[IGNORE]} for id 255", "255, the id of padding")
        self.mapping = dict(mapping)
        self.table = np.full(256, IGNORE, np.uint8)
        self.declared = np.zeros(256, bool)
        for file_id, train_id in mapping.items():
            self.table[file_id] = train_id
            self.declared[file_id] = True

    def __call__(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Return the train ids, uint8 ``[H, W]``; raise InputError naming ``path`` and the undeclared ids."""
        if ids.max(initial=0) > 255 or not self.declared[ids].all():
            found = [int(i) for i in np.unique(ids) if i > 255 or not self.declared[i]]
            listed = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
            raise bad(f"label {path}", f"id {listed}", f"ids among {_ranges(self.mapping)}")
        return self.table[ids]


def _ranges(ids: dict[int, int]) -> str:
    """Describe ids as ranges, such as ``0-33, 255``."""
    parts: list[list[int]] = []
    for i in sorted(ids):
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
