"""PNG as a container: headers, checksums, and the first channel of 16-bit colour files.

Image libraries reduce 16-bit RGB to 8 bits by dropping the low byte, where SYNTHIA keeps its class ids;
therefore those files are read here. Source: the PNG specification (W3C, third edition), sections 5, 7 and 9.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
COLOUR_NAMES = {GREY: "grey", RGB: "RGB", PALETTE: "palette", GREY_ALPHA: "grey with alpha", RGBA: "RGBA"}


@dataclass(frozen=True)
class Header:
    """IHDR chunk of a PNG: sizes in pixels, bits per sample, colour type (0, 2, 3, 4 or 6).

    ``turned``: another chunk may hold an orientation, as EXIF or XMP.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    turned: bool = False

    def __str__(self) -> str:
        return f"a {self.depth}-bit {COLOUR_NAMES.get(self.colour, 'unknown')} PNG"


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (type, content) of each chunk up to IEND; every checksum is compared."""
    view = memoryview(data)  # slices without copies
    position = len(SIGNATURE)
    while True:
        head = data[position : position + 8]
        if len(head) < 8:
            raise ValueError("a truncated PNG")
        length, kind = struct.unpack(">I4s", head)
        content = view[position + 8 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            raise ValueError("a truncated PNG")
        if struct.unpack(">I", checksum)[0] != zlib.crc32(content, zlib.crc32(kind)):
            raise ValueError("a damaged PNG (wrong checksum)")
        yield kind, content
        if kind == b"IEND":
            return
        position += 12 + length


def parse(data: bytes) -> tuple[Header, bytes]:
    """Return the header and the compressed pixel data of a PNG; raise ValueError that describes a wrong file."""
    if not data:
        raise ValueError("an empty file")
    if not data.startswith(SIGNATURE):
        raise ValueError("a file that is not a PNG")
    header, pixels = None, []
    for kind, content in _chunks(data):
        if kind == b"IHDR" and len(content) == 13:
            width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", content)
            header = Header(width, height, depth, colour, interlace != 0)
        elif kind == b"IDAT":
            pixels.append(content)
        elif header is not None and _may_turn(kind, content):
            header = replace(header, turned=True)
    if header is None or not pixels:
        raise ValueError("a PNG without pixels")
    return header, b"".join(pixels)


def _may_turn(kind: bytes, content: memoryview) -> bool:
    """Return whether a chunk may hold an orientation, where Pillow looks for it."""
    texts = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
    is_text = kind in (b"tEXt", b"zTXt", b"iTXt")
    return kind == b"eXIf" or (is_text and bytes(content[:24]).startswith(texts))


def palette_to_grey(data: bytes) -> bytes:
    """Convert an 8-bit palette PNG to a grey one of the same pixels: the indices are the grey values."""
    out = [SIGNATURE]
    for kind, chunk in _chunks(data):
        content = bytes(chunk)
        if kind == b"IHDR":
            content = content[:9] + bytes([GREY]) + content[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            checksum = zlib.crc32(content, zlib.crc32(kind))
            out += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)]
    return b"".join(out)


def first_channel(header: Header, pixels: bytes) -> np.ndarray:
    """Return the first channel of a 16-bit RGB(A) PNG, uint16 ``[H, W]``; raise ValueError for any other kind."""
    if header.depth != 16 or header.colour not in (RGB, RGBA) or header.interlaced:
        raise ValueError(f"{header}{', interlaced' if header.interlaced else ''}")
    step = 6 if header.colour == RGB else 8
    line = 1 + header.width * step
    raw = zlib.decompressobj().decompress(pixels, header.height * line + 1)
    if len(raw) != header.height * line:
        raise ValueError(f"{len(raw)} bytes of pixels instead of {header.height * line}")
    rows = np.frombuffer(raw, np.uint8).reshape(header.height, line)
    if rows[:, 0].max() > 4:
        raise ValueError(f"PNG filter {rows[:, 0].max()}, which does not exist")
    # Filters predict a byte from the same byte of neighbouring pixels, so the other channels are not needed.
    samples = rows[:, 1:].reshape(header.height, header.width, step)[..., :2]
    return _unfilter(samples, rows[:, 0]).view(">u2")[..., 0].astype(np.uint16)


def _unfilter(samples: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Undo the row filters (PNG section 9) of uint8 ``[H, W, B]``, one anti-diagonal of pixels at a time.

    A pixel depends on its left, upper and upper-left neighbours, which lie on the two diagonals before it.
    """
    height, width, lanes = samples.shape
    diagonals = height + width - 1
    # Row r is shifted right by r, so that column k holds the k-th anti-diagonal.
    padded = np.zeros((height, diagonals + 1, lanes), np.uint8)
    padded[:, :width] = samples
    skewed = padded.reshape(-1, lanes)[: height * diagonals].reshape(height, diagonals, lanes)
    skewed = np.ascontiguousarray(skewed.transpose(1, 0, 2))
    is_sub, is_up, is_mean, is_paeth = ((filters == kind).astype(np.int16)[:, None] for kind in (1, 2, 3, 4))
    # Entry 0 of a line is the row above the image, which is zero; so is everything left of column 0.
    lines = np.zeros((diagonals + 2, height + 1, lanes), np.int16)
    for k in range(diagonals):
        left, up, corner = lines[k + 1, 1:], lines[k + 1, :-1], lines[k, :-1]
        to_left, to_up = np.abs(up - corner), np.abs(left - corner)
        to_corner = np.abs(left + up - 2 * corner)
        nearest = np.where(to_up <= to_corner, up, corner)
        paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
        guess = is_sub * left + is_up * up + is_mean * ((left + up) >> 1) + is_paeth * paeth
        lines[k + 2, 1:] = (skewed[k] + guess) & 255
    rows = np.arange(height)[:, None]
    return lines[rows + np.arange(width) + 2, rows + 1].astype(np.uint8)
