"""Label files as train ids, or as bytes for another decoder; errors are one sentence that names the file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from udas_fast.data import png
from udas_fast.data.classes import IGNORE
from udas_fast.data.files import UNREADABLE, Size, netpbm, reason, require_regular, size_of, upright
from udas_fast.errors import InputError, bad

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LABEL_FORMATS = ("PNG", "TIFF", "BMP")
KINDS = "a PNG, TIFF or BMP whose pixels are class ids (palette or grey) or colours"
PART = 2**24  # pixels that are looked up at a time
HIGHEST_ID = 65535
BITS_PER_SAMPLE = 258  # tag of TIFF

IdsOrColours = np.ndarray
"""Ids as uint8 or uint16 ``[H, W]``, or colours as uint8 ``[H, W, 3]``."""


class IdMap:
    """Look-up of train ids by the ids or colours in label files; those that are not in the map are errors.

    Args:
        ids: ``{file id 0..65535: train id}``, train id 255 for ids that are declared but ignored.
        colours: ``{0xRRGGBB: train id}`` in the same way.
    """

    def __init__(self, ids: Mapping[int, int], colours: Mapping[int, int] | None = None) -> None:
        self.mapping, self.colours = dict(ids), dict(colours or {})
        self.table = np.full(HIGHEST_ID + 1, IGNORE, np.uint8)
        self.declared = np.zeros(HIGHEST_ID + 1, bool)
        for file_id, train_id in ids.items():
            self.table[file_id] = train_id
            self.declared[file_id] = True

    @property
    def in_bytes(self) -> bool:
        """True if a table of 256 entries, of which 255 is ignored, maps every label."""
        return (
            not self.colours
            and max(self.mapping, default=0) < 256
            and self.mapping.get(IGNORE, IGNORE) == IGNORE
        )

    @property
    def only_colours(self) -> bool:
        """True if no class has an id."""
        return bool(self.colours) and all(train_id == IGNORE for train_id in self.mapping.values())

    def __call__(self, pixels: IdsOrColours, path: Path) -> np.ndarray:
        """Return the train ids, uint8 ``[H, W]``; raise InputError naming ``path`` and the undeclared ids."""
        # In parts, as the indices of a look-up take eight bytes a pixel.
        rows = max(1, PART // max(1, pixels.shape[1]))
        parts = [self._map(pixels[row : row + rows], path) for row in range(0, len(pixels), rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _map(self, pixels: IdsOrColours, path: Path) -> np.ndarray:
        if pixels.ndim == 3:
            return self._of_colours(pixels, path)
        if not self.declared[pixels].all():
            found = [int(i) for i in np.unique(pixels) if not self.declared[i]]
            listed = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
            raise bad(f"label {path}", f"id {listed}", f"ids among {_ranges(self.mapping)}")
        return self.table[pixels]

    def _of_colours(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        if not self.colours:
            return self._map(_one_channel(pixels, path), path)
        table, declared = _colour_tables(tuple(self.colours.items()))
        codes = _codes(pixels)
        if not (known := declared[codes]).all():
            raise bad(f"label {path}", *_describe_unknown(codes[~known], self.colours))
        return table[codes]


def read_label(path: Path, id_map: IdMap, *, rgb16: bool = False) -> np.ndarray:
    """Read a label file as train ids, uint8 ``[H, W]``; the file as :func:`read_ids` reads it.

    Raises:
        InputError: the file is missing, damaged or of another kind, or holds what ``id_map`` does not have.
    """
    return id_map(read_ids(path, rgb16=rgb16, only_colours=id_map.only_colours), path)


def read_ids(path: Path, *, rgb16: bool = False, only_colours: bool = False) -> IdsOrColours:
    """Read the class ids stored in a label file, unchanged, or the colours of a file with three channels.

    They are turned upright as :func:`udas_fast.data.read_image` turns images. Alpha is left out.

    Args:
        path: a PNG, TIFF or BMP. Of a palette the index is read, never the colour.
        rgb16: PNGs of 16-bit RGB(A), id in the first channel (SYNTHIA).
        only_colours: no ids are declared, so grey and palette files are colours as well.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    kinds = "a 16-bit RGB PNG" if rgb16 else KINDS
    try:
        require_regular(path)
        data = path.read_bytes()
        if rgb16:
            return png.first_channel(*png.parse(data))
        return _pixels(data, only_colours)
    except InputError:
        raise
    except ValueError as error:
        raise bad(f"label {path}", error, kinds) from error
    except UNREADABLE as error:
        raise bad(f"label {path}", reason(error), kinds) from error


def _pixels(data: bytes, only_colours: bool) -> IdsOrColours:
    """Return the ids or colours in a file; raise ValueError that describes one that has neither."""
    if not data:
        raise ValueError("an empty file")
    if data.startswith(b"\xff\xd8"):
        raise ValueError("a JPEG, which blurs ids and colours at every edge")
    depth = 8
    if data.startswith(png.SIGNATURE):
        header, _ = png.parse(data)  # compares checksums, which Pillow does not
        depth = header.depth
        if depth == 16 and header.colour != png.GREY:
            raise ValueError(str(header))
    with Image.open(io.BytesIO(data), formats=LABEL_FORMATS) as image:
        if image.format == "TIFF":
            depth = image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0]
        image = upright(image)
        if only_colours and image.mode in ("1", "L", "LA", "P", "PA"):
            return np.array(image.convert("RGB"))
        if image.mode in ("RGB", "RGBA", "RGBX") and depth == 8:
            return np.array(image)[..., :3]
        return _ids(image, depth)


def _ids(image: Image.Image, depth: int) -> np.ndarray:
    """Return the ids of an image of one channel beside alpha; raise ValueError for any other."""
    pixels = np.array(image)
    if image.mode == "1":
        return pixels.astype(np.uint8)
    if (
        image.mode == "L" and depth < 8
    ):  # Pillow scales grey of 2 and 4 bits to the range of 8, which changes the ids
        return pixels // (255 // ((1 << depth) - 1))
    if image.mode in ("LA", "PA"):
        return pixels[..., 0]
    if image.mode == "I" and 0 <= pixels.min(initial=0) <= pixels.max(initial=0) <= HIGHEST_ID:
        return pixels.astype(np.uint16)
    if image.mode in ("L", "P") or image.mode.startswith("I;16"):
        return pixels.astype(np.uint16 if depth > 8 else np.uint8)
    kinds = {"I": "32-bit ids", "F": "floating-point pixels"}
    raise ValueError(kinds.get(image.mode, f"{depth}-bit {image.mode} pixels"))


def encoded_label(path: Path, id_map: IdMap, *, rgb16: bool, as_pixels: bool = False) -> tuple[bytes, Size]:
    """Return a label file for a decoder that ignores palettes, and its (H, W).

    Its pixels are ids that :attr:`IdMap.table` maps, or train ids where that takes more than bytes
    (:attr:`IdMap.in_bytes`). An 8-bit palette PNG becomes a grey one with the same pixels; other files that
    :func:`read_ids` can read, or all if ``as_pixels``, are returned as PGM. With ``rgb16`` a 16-bit PNG keeps its
    channels.

    Raises:
        InputError: as :func:`read_label`.
    """
    if not id_map.in_bytes:
        train_ids = read_label(path, id_map)
        return netpbm(b"P5", train_ids), size_of(train_ids)
    if not as_pixels:
        try:
            require_regular(path)
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
        ids = ids if ids.ndim == 2 else _one_channel(ids, path)
        ids = ids.clip(max=IGNORE).astype(np.uint8)
    return netpbm(b"P5", ids), size_of(ids)


def _one_channel(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Return the ids of a file that repeats them in three channels; raise InputError for colours."""
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    colours = np.unique(_codes(pixels))
    found = ", ".join(hexadecimal(_parts(int(code))) for code in colours[:3])
    expected = "ids, or the classes of these colours in a dataset.yaml beside the images (docs/own-data.md)"
    raise bad(f"label {path}", f"colours ({found}{', …' if len(colours) > 3 else ''})", expected)


def hexadecimal(colour: Iterable[int]) -> str:
    """Return an RGB colour as ``#rrggbb``."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)


@lru_cache(maxsize=4)
def _colour_tables(colours: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the train id of each of the 2²⁴ colours, uint8, and whether it is declared."""
    table, declared = np.full(1 << 24, IGNORE, np.uint8), np.zeros(1 << 24, bool)
    for code, train_id in colours:
        table[code], declared[code] = train_id, True
    return table, declared


def _describe_unknown(codes: np.ndarray, declared: Iterable[int]) -> tuple[str, str]:
    """Return what was found and is expected of the colours ``codes`` of pixels, which are not ``declared``."""
    unknown, counts = np.unique(codes, return_counts=True)
    first = int(unknown[counts.argmax()])
    more = f" and {len(unknown) - 1} other unknown colours" if len(unknown) > 1 else ""
    near = min(
        declared, key=lambda code: sum((a - b) ** 2 for a, b in zip(_parts(code), _parts(first), strict=True))
    )
    found = f"colour {hexadecimal(_parts(first))} in {counts.max()} pixels{more}"
    advice = (
        "smoothed edges or a mask that was a JPEG are the usual cause; else add it to a class or to ignore"
    )
    return found, f"declared colours, {hexadecimal(_parts(near))} being the nearest: {advice}"


def _codes(pixels: np.ndarray) -> np.ndarray:
    """Return colours ``[H, W, 3]`` as 0xRRGGBB."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    return red << 16 | green << 8 | blue


def _parts(code: int) -> tuple[int, int, int]:
    """Return red, green and blue of 0xRRGGBB."""
    return code >> 16, code >> 8 & 255, code & 255


def _ranges(ids: Iterable[int]) -> str:
    """Describe ids as ranges, such as ``0-33, 255``."""
    parts: list[list[int]] = []
    for i in sorted(ids):
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
