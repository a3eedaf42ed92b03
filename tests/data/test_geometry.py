"""Geometry: image and label stay together, padding is void, and draws depend on the generator only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from udas_fast.data.geometry import Geometry, resize
from udas_fast.errors import InputError


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_identity():
    image = generator().integers(0, 256, (6, 8, 3), dtype=np.uint8)
    label = generator(1).integers(0, 19, (6, 8), dtype=np.uint8)
    out, out_label = Geometry(size=(6, 8)).apply(image, label, generator())
    assert np.array_equal(out, image)
    assert np.array_equal(out_label, label)
    assert Geometry(size=(3, 4)).apply(image, None, generator())[1] is None


@pytest.mark.parametrize("size", [(4, 6), (9, 7), (20, 11), (1, 1), (60, 90), (3, 90)])
def test_bilinear_is_pillows_within_one_grey_level(size):
    image = generator().integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    found = resize(image, size, Image.Resampling.BILINEAR)
    assert found.flags.c_contiguous
    assert np.abs(found - expected).max() <= 1


def test_halving_averages_the_image_and_picks_label_pixels():
    label = generator().integers(0, 19, (8, 12), dtype=np.uint8)
    image = np.full((8, 12, 3), 90, np.uint8)
    image[:, 6:] = 200
    out, out_label = Geometry(size=(4, 6)).apply(image, label, generator())
    assert (out[:, :2] == 90).all()
    assert (out[:, 4:] == 200).all()
    # Nearest to the centre of a 2 × 2 block, as in torch's "nearest-exact": its lower right pixel.
    assert np.array_equal(out_label, label[1::2, 1::2])


@settings(max_examples=60, deadline=None)
@given(
    native=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    crop=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_image_and_label_move_together(native, crop, flip, seed):
    # Every pixel has a unique value (from 1 in the image too, because padding is 0).
    label = np.arange(native[0] * native[1], dtype=np.uint16).reshape(native) % 250
    label = label.astype(np.uint8)
    image = np.repeat(label[..., None] + 1, 3, axis=2)
    out, out_label = Geometry(size=native, crop=crop, flip=flip).apply(image, label, generator(seed))
    assert out.shape == (*crop, 3)
    assert np.array_equal(out_label == 255, out[..., 0] == 0)
    inside = out_label != 255
    assert np.array_equal(out[..., 0][inside], out_label[inside] + 1)
    assert inside.sum() == min(native[0], crop[0]) * min(native[1], crop[1])


@settings(max_examples=60, deadline=None)
@given(
    native=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    crop=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seed=st.integers(0, 1000),
)
def test_pixels_are_counted_as_a_transformed_label_shows_them(native, size, crop, seed):
    label = generator(seed).integers(0, 3, native, dtype=np.uint8)
    sampled = Geometry(size=size, crop=crop, flip=True).sample(generator(seed))
    _, shown = sampled.apply(np.zeros((*native, 3), np.uint8), label)
    assert [sampled.count_pixels(label == c) for c in range(3)] == [int((shown == c).sum()) for c in range(3)]


def test_scale_crop_and_flip_reach_their_whole_range():
    geometry = Geometry(size=(10, 10), scale=(0.5, 2.0), crop=(8, 8), flip=True)
    image = np.zeros((10, 10, 3), np.uint8)
    image[:, :, 0] = np.linspace(10, 250, 10)
    padded, mirrored, slopes = 0, 0, []
    for seed in range(300):
        out, label = geometry.apply(image, image[..., 0] // 20, generator(seed))
        inside = np.where((label != 255).any(0))[0]
        row = out[(label != 255).any(1).argmax(), inside, 0].astype(float)
        padded += bool((label == 255).any())
        mirrored += bool(row[-1] < row[0])
        slopes.append(abs(row[-1] - row[0]) / max(len(row) - 1, 1))
    # Smaller than 8 below a factor of 0.8, which is 0.3 / 1.5 of the range.
    assert 0.1 < padded / 300 < 0.3
    assert 0.4 < mirrored / 300 < 0.6
    assert min(slopes) < 16 < 40 < max(slopes)


def test_disabling_the_flip_changes_nothing_else():
    image = generator().integers(1, 256, (12, 16, 3), dtype=np.uint8)
    for seed in range(10):
        both = [
            Geometry(size=(12, 16), scale=(0.8, 1.5), crop=(9, 9), flip=flip).apply(
                image, None, generator(seed)
            )[0]
            for flip in (False, True)
        ]
        assert np.array_equal(both[0], both[1]) or np.array_equal(both[0], both[1][:, ::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, "size"),
        ({"size": (4, 4), "scale": (2.0, 1.0), "crop": (2, 2)}, "lowest, highest"),
        ({"size": (4, 4), "scale": (0.5, 1.0)}, "crop: found None"),
        ({"size": (4, 4), "scale": (0.0, 1.0), "crop": (2, 2)}, "greater than 0"),
        ({"size": (4, 4), "scale": (1.0, float("inf")), "crop": (2, 2)}, "finite"),
        ({"size": (4, 4), "flip": "False"}, "flip"),
        ({"size": (4, 4), "crops": (2, 2)}, "crops"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        Geometry(**options)
