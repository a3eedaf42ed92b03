"""Pixels of images as cameras and sensors write them: turned by EXIF, and of more than 8 bits."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udas_fast import TrainedModel
from udas_fast.data import (
    ClassSet,
    Geometry,
    TrainLoader,
    check_dataset,
    evaluation_batches,
    find_bit_depth,
    open_dataset,
    read_image,
)
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.errors import InputError
from udas_fast.inference import Pictures, media_files, predict_files
from udas_fast.models import ModelConfig, build_model
from udas_fast.recipes import InputConfig

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


def deep_folder(root: Path, highest: dict[str, list[int]], suffix: str = ".png") -> Path:
    """Write a ``folder:`` root of grey ramps of 16 bits, up to the ``highest`` pixels of each split."""
    for split, values in highest.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i, value in enumerate(values):
            Image.fromarray(ramp(value)).save(root / f"images/{split}/{i}{suffix}")
            Image.fromarray((ramp(value) > value // 2).astype(np.uint8)).save(
                root / f"labels/{split}/{i}.png"
            )
    (root / "classes.txt").write_text("dark\nbright\n")
    return root


def ramp(highest: int) -> np.ndarray:
    return np.linspace(0, highest, 24 * 32).reshape(24, 32).astype(np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_sensors_bits_are_found_in_the_data_of_all_splits(tmp_path: Path, suffix: str) -> None:
    root = deep_folder(tmp_path, {"train": [1900, 500], "val": [300]}, suffix)
    for split, values in (("train", [1900, 500]), ("val", [300])):
        dataset = open_dataset(f"folder:{root}", split)
        for sample, value in zip(dataset, values, strict=True):
            assert np.array_equal(sample.image[..., 1], ramp(value) >> 3)
        report = check_dataset(dataset)
        told = f"16-bit images ({len(values)} of {len(values)}) are read as 11-bit, white is 2047 (--bit-depth N "
        assert report.notices() == [f"{told}says otherwise)"]
    twelve = open_dataset(f"folder:{root}", "train", bit_depth=12)
    assert np.array_equal(twelve[0].image[..., 0], ramp(1900) >> 4)
    for brighter in (8, 10):
        with pytest.raises(InputError) as refused:
            open_dataset(f"folder:{root}", "train", bit_depth=brighter)[0]
        assert f"found pixel 1900, expected at most {2**brighter - 1}, white of {brighter} bits" in str(
            refused.value
        )


def test_files_of_the_whole_range_are_read_as_such(tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{deep_folder(tmp_path, {'train': [65535, 9000]})}", "train")
    assert np.array_equal(dataset[1].image[..., 2], ramp(9000) >> 8)
    assert "read as 16-bit, white is 65535" in check_dataset(dataset).notices()[0]


def test_a_single_dark_file_is_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(ramp(1275)).save(path)
    with pytest.raises(InputError) as refused:
        read_image(path)
    assert str(refused.value) == (
        f"image {path}: found 16-bit pixels up to 1275, which is black where 65535 is white, expected the bits of the "
        "sensor: --bit-depth N (16: it is that dark)"
    )
    assert np.array_equal(read_image(path, bit_depth=11)[..., 0], ramp(1275) >> 3)
    assert read_image(path, bit_depth=16).max() == 1275 >> 8


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_keep_their_low_bytes(
    tmp_path: Path, png16: Callable[..., bytes], channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 11, channels)).astype(np.uint16)
    pixels[0, 0, 0] = 4095
    path = tmp_path / "a.png"
    path.write_bytes(png16(pixels, [r % 5 for r in range(9)]))
    assert np.array_equal(read_image(path, bit_depth=12), pixels[..., :3] >> 4)
    assert find_bit_depth([path]) == 12


@pytest.mark.parametrize(("order", "packed"), [("<", False), (">", False), ("<", True), (">", True)])
def test_colours_of_16_bits_in_tiff(tmp_path: Path, order: str, packed: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 11, 3)).astype(np.uint16)
    data = pixels.astype(order + "u2").tobytes()
    data = zlib.compress(data) if packed else data
    tags = [(256, 11), (257, 9), (258, 3), (259, 8 if packed else 1), (262, 2), (273, 8), (277, 3), (278, 9)]
    tags += [(279, len(data)), (284, 1)]
    start = 8 + len(data)
    content = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start) + data
    content += struct.pack(order + "H", len(tags))
    for tag, value in tags:
        bits = tag == 258  # three numbers, which are after the tags
        value = start + 2 + 12 * len(tags) + 4 if bits else value
        content += struct.pack(order + "HHII", tag, 3 if bits else 4, 3 if bits else 1, value)
    (tmp_path / "a.tif").write_bytes(content + struct.pack(order + "I3H", 0, 16, 16, 16))
    assert np.array_equal(read_image(tmp_path / "a.tif", bit_depth=12), pixels >> 4)


@pytest.mark.dali
def test_both_engines_scale_16_bits(tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{deep_folder(tmp_path, {'train': [1900, 500]})}", "train")
    loaders = [TrainLoader(dataset, Geometry(size=(24, 32)), 1, 0, "x", engine=e) for e in ("torch", "dali")]
    for a, b in itertools.islice(zip(*(loader.batches() for loader in loaders), strict=True), 2):
        assert np.array_equal(a.image, b.image)
        assert a.image.max() > 60


def test_a_run_tells_its_bit_depth_and_its_model_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = deep_folder(tmp_path / "data", {"train": [1900, 500, 700, 800], "val": [300]})
    name = f"folder:{root}"
    domains = Domains.open(
        DataConfig(name, name), InputConfig(), needed={"source", "unlabelled"}, optional=set(), recipe="udas"
    )
    told = "16-bit images ({} of {}) are read as 11-bit, white is 2047 (--bit-depth N says otherwise)"
    assert domains.verify() == [
        f"source folder: {told.format(4, 4)}",
        f"unlabelled folder: {told.format(4, 4)}",
        f"val folder: {told.format(1, 1)}",
    ]
    assert domains.bit_depth == 11
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", width=4)
    classes = ClassSet("two", ("a", "b"), ((0, 0, 0), (9, 9, 9)))
    trained = TrainedModel(build_model(config, 2).eval(), config, classes, (24, 32), bit_depth=11)
    trained.save(tmp_path / "model.safetensors")
    trained = TrainedModel.load(tmp_path / "model.safetensors")
    dark = root / "images/val/0.png"  # 9 bits would hold it
    expected = trained.predict(np.repeat((ramp(300) >> 3).astype(np.uint8)[..., None], 3, 2))
    assert np.array_equal(trained.predict(dark)[1], expected[1])
    pictures = Pictures(tmp_path / "out", ["confidence"], trained.classes)
    predict_files(trained, media_files([dark]), [pictures])
    assert "NOTICE: 16-bit images are read as 11-bit, white is 2047" in capsys.readouterr().err
    written = np.asarray(Image.open(tmp_path / "out/0_confidence.png"))
    assert np.array_equal(written, np.rint(255 * expected[1]).astype(np.uint8))


def test_jpeg_2000_is_read_whole(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.jp2", np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, irreversible=False)
    assert np.array_equal(read_image(path), pixels)
    grey = rng.integers(0, 2**16, (40, 56)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.jp2", irreversible=False)
    assert np.abs(read_image(tmp_path / "grey.jp2")[..., 1] - grey / 257).max() <= 1
    data = path.read_bytes()
    for length in (12, 100, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a.jp2: found .*, expected a complete JPEG"):
            read_image(path)
