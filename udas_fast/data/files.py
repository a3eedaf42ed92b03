"""Image files as arrays, or as bytes for another decoder; errors are one sentence that names the file."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from udas_fast.data import png
from udas_fast.data.bit_depth import check_bit_depth, is_deep, low_bytes, spread, to_8_bits
from udas_fast.errors import InputError, bad

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jp2")
# MPO (JPEGs of phones) is opened by Pillow's JPEG reader and needs no name of its own here.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "JPEG2000")
READABLE = "a complete JPEG, PNG, BMP, WebP, TIFF or JPEG 2000 file"

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
        require_regular(source)
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            if not is_deep(image):
                return _rgb(image, name, bit_depth)
        return _three_channels(to_8_bits(_read_deep(source), bit_depth, name))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, error) from error
    except UNREADABLE as error:
        raise bad(name, reason(error), READABLE) from error


def _too_large(name: str, error: Image.DecompressionBombError) -> InputError:
    """Return an InputError about an image that Pillow takes for a bomb, with the way on."""
    found, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
    expected = f"at most {limit:,}; `predict` decodes it whole with --max-pixels {found}"
    parts = "and a TIFF of tiles or strips part by part with --native --tile SIZE"
    return bad(name, f"{found:,} pixels", f"{expected}, {parts}")


def _rgb(image: Image.Image, name: str, bit_depth: int | None) -> np.ndarray:
    image = upright(image)
    if image.mode.startswith("I;16"):
        return _three_channels(to_8_bits(np.asarray(image), bit_depth, name))
    if image.mode in ("I", "F"):
        raise bad(name, "32-bit grey pixels", "8 or 16 bits per channel")
    return np.array(image.convert("RGB"))


def _read_deep(source: Path) -> np.ndarray:
    """Return the upright pixels of a 16-bit file without its alpha, uint16 ``[H, W(, 3)]``."""
    with Image.open(source, formats=IMAGE_FORMATS) as image:
        image = upright(image)
        if image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)
        high = np.asarray(image).astype(np.uint16) << 8
        if image.mode == "LA":  # whose low bytes Pillow cannot return
            return high[..., 0]
    with Image.open(source, formats=IMAGE_FORMATS) as image:
        return (high | np.asarray(upright(low_bytes(image))))[..., :3]


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def upright(image: Image.Image) -> Image.Image:
    """Return ``image``, decoded, as its EXIF orientation turns it."""
    image.load()  # a PNG may hold its orientation after the pixels
    return ImageOps.exif_transpose(image) if _is_turned(image) else image


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


@dataclass(frozen=True)
class ImageHeader:
    """EXIF orientation of an image file, 1 to 8, whether it has 16 bits a channel, and its (H, W) as it is stored."""

    orientation: int = 1
    deep: bool = False
    size: tuple[int, int] | None = None


def read_header(path: Path) -> ImageHeader:
    """Read the header of an image file; that of an upright 8-bit image where it cannot be read."""
    try:
        require_regular(path)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            turn = Image.Image.getexif(image).get(
                ExifTags.Base.Orientation, 1
            )  # a PNG's own decodes its pixels
            return ImageHeader(turn if turn in range(1, 9) else 1, is_deep(image), image.size[::-1])
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


def require_regular(source: object) -> None:
    """Raise OSError for the path of a pipe or a device, whose reading might never end."""
    if isinstance(source, (str, os.PathLike)):
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "no regular file")


def reason(error: BaseException) -> str:
    """Describe one of :data:`UNREADABLE`."""
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
            require_regular(path)
            data = path.read_bytes()
            if (size := _plain_image_size(data)) is not None:
                return data, size
        except UNREADABLE:
            pass
    pixels = read_image(path, bit_depth=bit_depth)
    return netpbm(b"P6", pixels), size_of(pixels)


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


def size_of(pixels: np.ndarray) -> Size:
    """Return (H, W)."""
    return pixels.shape[0], pixels.shape[1]


def netpbm(kind: bytes, pixels: np.ndarray) -> bytes:
    """Encode uint8 or uint16 ``[H, W(, 3)]`` as PPM (``P6``) or PGM (``P5``) of 8 or 16 bits."""
    height, width = pixels.shape[:2]
    highest = np.iinfo(pixels.dtype).max
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    return kind + f"\n{width} {height}\n{highest}\n".encode() + big_endian.tobytes()
