"""16-bit PNGs against the arrays that they encode, and against Pillow's decoder."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from udas_fast.data import png


def first_channel(data: bytes) -> np.ndarray:
    return png.first_channel(*png.parse(data))


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("channels", [3, 4])
def test_every_row_filter(png16, kind, channels):
    pixels = np.random.default_rng(kind).integers(0, 65536, (7, 9, channels), dtype=np.uint16)
    assert np.array_equal(first_channel(png16(pixels, [kind] * 7)), pixels[..., 0])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_size_and_mix_of_filters(png16, data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    filters = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    seed = data.draw(st.integers(0, 1000))
    # Smooth values as well as noise: Paeth's ties only happen between equal neighbours.
    limit = data.draw(st.sampled_from([2, 300, 65536]))
    pixels = np.random.default_rng(seed).integers(0, limit, (height, width, 3), dtype=np.uint16)
    assert np.array_equal(first_channel(png16(pixels, filters)), pixels[..., 0])


def test_agrees_with_pillow_in_both_bytes(png16):
    pixels = np.random.default_rng(3).integers(0, 65536, (11, 6, 3), dtype=np.uint16)
    data = png16(pixels, [r % 5 for r in range(11)])
    ours = first_channel(data)
    for rawmode, shift in (("RGB;16B", 8), ("RGB;16L", 0)):
        # Read as little-endian, "the high byte" that Pillow keeps is the low one.
        with Image.open(io.BytesIO(data)) as image:
            image.tile = [tile._replace(args=rawmode) for tile in image.tile]
            assert np.array_equal((ours >> shift) & 255, np.asarray(image)[..., 0])


def test_messages_distinguish_wrong_kinds_and_damage(png16):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3)
    good = png16(pixels, [4] * 4)
    grey = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(grey, "PNG")
    flipped = bytearray(good)
    flipped[50] ^= 16
    for data, message in (
        (b"", "empty"),
        (b"GIF89a" + good, "not a PNG"),
        (good[:-20], "truncated"),
        (good[:30], "truncated"),
        (bytes(flipped), "checksum"),
        (grey.getvalue(), "8-bit grey"),
        (png16(pixels, [0] * 4, interlaced=True), "interlaced"),
    ):
        with pytest.raises(ValueError, match=message):
            first_channel(data)


def test_pixels_that_do_not_fill_the_image():
    header = png.Header(width=5, height=4, depth=16, colour=png.RGB, interlaced=False)
    with pytest.raises(ValueError, match="10 bytes of pixels instead of 124"):
        png.first_channel(header, zlib.compress(bytes(10)))
    with pytest.raises(ValueError, match="filter 9"):
        png.first_channel(header, zlib.compress(b"\x09" + bytes(123)))
