"""Images of 16 bits a channel: which bits hold the picture, and the 8 bits that a network sees.

Sensors of 10 to 14 bits write files of 16, whose upper bits are 0: taken for the whole range, such images are black.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from udas_fast.errors import bad

FULL = 16
"""Bit depth of files whose whole range is used."""
DARK = 1 << 12  # below it all pixels of a whole range would be black
SAMPLE = 32  # images that are looked at for the depth of a dataset
ADVICE = "--bit-depth N"


def is_deep(image: Image.Image) -> bool:
    """Return whether the file of ``image``, whose pixels are not decoded yet, has 16 bits a channel."""
    return image.mode.startswith("I;16") or any(";16" in _raw_mode(tile[3]) for tile in _tiles(image))


def low_bytes(image: Image.Image) -> Image.Image:
    """Make ``image``, a colour file of 16 bits that is not decoded yet, decode to its low bytes, and return it.

    Pillow keeps the first byte of each sample where its raw mode is big-endian and the second where it is
    little-endian, so the other byte order gives the byte that it would drop.
    """
    first = "L" if sys.byteorder == "big" else "B"
    other = {"B": "L", "L": "B", "N": first}
    changed = []
    for tile in _tiles(image):
        mode = _raw_mode(tile[3])
        mode = mode[:-1] + other[mode[-1]]
        arguments = mode if isinstance(tile[3], str) else (mode, *tile[3][1:])
        fields = (*tile[:3], arguments)
        changed.append(tile._make(fields) if hasattr(tile, "_make") else fields)
    image.tile = changed  # type: ignore[attr-defined]  # of images that are files
    return image


def to_8_bits(pixels: np.ndarray, bit_depth: int | None, name: str) -> np.ndarray:
    """Scale uint16 ``pixels`` to uint8: 2 to the power of ``bit_depth`` - 1 is white; None is the whole range.

    Raises:
        InputError: pixels above white, or black ones of a whole range that nobody asked for.
    """
    highest = int(pixels.max(initial=0))
    if bit_depth is None and 0 < highest < DARK:
        found = f"16-bit pixels up to {highest}, which is black where {(1 << FULL) - 1} is white"
        raise bad(name, found, f"the bits of the sensor: {ADVICE} ({FULL}: it is that dark)")
    bits = FULL if bit_depth is None else bit_depth
    if highest >= 1 << bits:
        expected = f"at most {(1 << bits) - 1}, white of {bits} bits; {ADVICE} says how many the sensor has"
        raise bad(name, f"pixel {highest}", expected)
    return (pixels >> (bits - 8)).astype(np.uint8)


def check_bit_depth(bit_depth: object) -> None:
    """Raise InputError for what is neither None nor a number of bits."""
    whole = isinstance(bit_depth, int) and not isinstance(bit_depth, bool)
    if bit_depth is not None and not (whole and 8 <= bit_depth <= FULL):  # type: ignore[operator]  # a number
        raise bad("bit_depth", repr(bit_depth)[:60], f"8 to {FULL}, or None")


def rule(bit_depth: int | None) -> str:
    """Describe how 16-bit images are scaled."""
    bits = FULL if bit_depth is None else bit_depth
    return f"read as {bits}-bit, white is {(1 << bits) - 1} ({ADVICE} says otherwise)"


def spread(paths: Sequence[Path]) -> list[Path]:
    """Return at most :data:`SAMPLE` of ``paths``, evenly spread."""
    places = np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths)))
    return [paths[int(place)] for place in places]


def _tiles(image: Image.Image) -> list:
    return getattr(image, "tile", [])


def _raw_mode(arguments: object) -> str:
    """Return the raw mode in a decoder's arguments, which begin with it or are nothing else."""
    first = arguments[0] if isinstance(arguments, (tuple, list)) and arguments else arguments
    return first if isinstance(first, str) else ""
