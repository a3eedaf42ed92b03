"""Pixels of images as cameras and sensors write them: turned by EXIF, and of more than 8 bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import Geometry, TrainLoader, check_dataset, evaluation_batches, open_dataset
from udas_fast.errors import InputError

TURNED = {3: lambda x: np.rot90(x, 2), 6: np.rot90, 8: lambda x: np.rot90(x, -1)}
"""How the pixels are stored of an image that EXIF turns upright."""


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Writes a ``folder:`` root whose three images are stored turned by a tag; labels are drawn on the upright view."""

    def write(tag: int, suffix: str = ".jpg") -> Path:
        exif, rng = Image.Exif(), np.random.default_rng(0)
        exif[0x0112] = tag
        for kind in ("images", "labels"):
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
        for i in range(3):
            label = rng.integers(0, 2, (4, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            image = np.stack([label * 200, 255 - label * 200, label * 90], -1)
            stored = Image.fromarray(np.ascontiguousarray(TURNED[tag](image)))
            stored.save(tmp_path / f"images/train/{i}{suffix}", exif=exif, quality=98)
            Image.fromarray(label).save(tmp_path / f"labels/train/{i}.png")
        (tmp_path / "classes.txt").write_text("a\nb\n")
        return tmp_path

    return write


@pytest.mark.parametrize("tag", [3, 6, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_images_are_read_as_a_viewer_shows_them(photos: Callable[..., Path], tag: int, suffix: str) -> None:
    dataset = open_dataset(f"folder:{photos(tag, suffix)}", "train")
    for sample, batch in zip(dataset, evaluation_batches(dataset), strict=True):
        assert sample.image.shape == (32, 48, 3)
        right = (sample.image[..., 0] > 128) == (sample.label == 1)
        assert right.mean() > 0.95  # a lossy file blurs borders
        assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), sample.image)
        assert np.array_equal(dataset.unlabelled(0).image, dataset[0].image)  # what is translated


@pytest.mark.dali
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_both_engines_turn_images(photos: Callable[..., Path], suffix: str) -> None:
    dataset = open_dataset(f"folder:{photos(6, suffix)}", "train")
    geometry = Geometry(size=(32, 48))
    both = [
        list(itertools.islice(TrainLoader(dataset, geometry, 1, 0, "x", engine=engine).batches(), 3))
        for engine in ("torch", "dali")
    ]
    for a, b in zip(*both, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.label, b.label)


def test_labels_drawn_on_stored_pixels_are_refused_with_the_orientation(photos: Callable[..., Path]) -> None:
    root = photos(6)
    label = root / "labels/train/1.png"
    Image.fromarray(np.zeros((48, 32), np.uint8)).save(label)
    with pytest.raises(InputError) as refused:
        open_dataset(f"folder:{root}", "train")[1]
    assert str(refused.value) == (
        f"label {label}: found 32x48 pixels, expected the 48x32 of its image, which EXIF orientation 6 turns: draw "
        "labels on what a viewer shows, or save the image without EXIF"
    )


def test_turned_images_are_noted_with_their_labels(photos: Callable[..., Path]) -> None:
    report = check_dataset(open_dataset(f"folder:{photos(3)}", "train"))
    assert report.turned == ["0", "1", "2"]
    assert report.notices() == [
        "images that EXIF turns, whose labels must be drawn on what a viewer shows: 3 of 3 (0, 1, 2)"
    ]
    assert check_dataset(open_dataset(f"folder:{photos(3)}", "train", labelled=False)).notices() == []


def test_labels_are_turned_too(photos: Callable[..., Path]) -> None:
    root, exif = photos(6), Image.Exif()
    exif[0x0112] = 6
    path = root / "labels/train/0.png"
    label = np.array(Image.open(path))
    Image.fromarray(np.ascontiguousarray(np.rot90(label))).save(path, exif=exif)
    assert np.array_equal(open_dataset(f"folder:{root}", "train")[0].label, label)
