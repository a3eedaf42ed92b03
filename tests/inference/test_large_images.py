"""Large images: TIFF files are read region by region, others up to a limit; no library's warning reaches the user."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast import TrainedModel, cli
from udas_fast.data import read_image, regions
from udas_fast.data.regions import allowing, open_regions
from udas_fast.errors import InputError
from udas_fast.inference import predict_files

Make = Callable[..., TrainedModel]
SIZE = (150, 210)
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def tiled_tiff(path: Path, size: tuple[int, int], tiles: list[bytes], tile: int, order: str = "<") -> Path:
    """Write a TIFF of 8-bit RGB whose square tiles are compressed by deflate; one tile stands for all of them."""
    height, width = size
    count = -(-height // tile) * -(-width // tile)
    offsets, data = [], b""
    for content in tiles:
        offsets.append(8 + len(data))
        data += content
    offsets, sizes = (offsets * count)[:count], ([len(t) for t in tiles] * count)[:count]
    start, tags = 8 + len(data), 10
    extra = start + 2 + 12 * tags + 4
    fields = [(256, 1, width), (257, 1, height), (258, 3, extra), (259, 1, 8), (262, 1, 2), (277, 1, 3)]
    fields += [(322, 1, tile), (323, 1, tile), (324, count, extra + 6), (325, count, extra + 6 + 4 * count)]
    if count == 1:
        fields[-2:] = [(324, 1, offsets[0]), (325, 1, sizes[0])]
    directory = b"".join(
        struct.pack(order + "HHII", tag, 3 if tag == 258 else 4, n, v) for tag, n, v in fields
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    after = struct.pack(order + f"I3H{2 * count}I", 0, 8, 8, 8, *offsets, *sizes)
    path.write_bytes(head + data + struct.pack(order + "H", tags) + directory + after)
    return path


def deflated(pixels: np.ndarray, tile: int) -> list[bytes]:
    height, width = pixels.shape[:2]
    padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    return [zlib.compress(padded[y : y + tile, x : x + tile].tobytes()) for y, x in corners]


@pytest.fixture(params=["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "tiles", "big-endian tiles"])
def tiff(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a.tif"
    monkeypatch.setattr(regions, "STRIP", 210 * 3 * 32)  # of uncompressed files
    if "tiles" in request.param:
        return tiled_tiff(path, SIZE, deflated(NOISE, 64), 64, ">" if "big" in request.param else "<")
    Image.fromarray(NOISE).save(path, compression=request.param, strip_size=210 * 3 * 32)
    return path


def test_regions_are_those_of_the_whole_image(tiff: Path) -> None:
    opened, whole = open_regions(tiff), read_image(tiff)
    assert opened is not None
    for top, left, bottom, right in (
        (0, 0, 150, 210),
        (10, 20, 90, 200),
        (64, 64, 128, 128),
        (149, 209, 150, 210),
    ):
        assert np.array_equal(opened.read(top, left, bottom, right), whole[top:bottom, left:right])


def test_tiles_of_a_file_are_labelled_as_those_of_its_pixels(make_trained: Make, tiff: Path) -> None:
    trained = make_trained()
    expected = trained.predict(read_image(tiff), native=True, tile=(96, 96))
    for one, other in zip(trained.predict(tiff, native=True, tile=(96, 96)), expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_strips_of_other_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    grey = NOISE[..., 0]
    image = (
        Image.fromarray(grey.astype(np.uint16) << 3)
        if mode == "I;16"
        else Image.fromarray(grey).convert(mode)
    )
    image.save(path, compression="tiff_lzw", strip_size=1000)
    opened = open_regions(path, 11)
    assert opened is not None
    assert np.array_equal(opened.read(3, 5, 77, 88), read_image(path, bit_depth=11)[3:77, 5:88])


def test_a_file_beyond_the_limit_is_read_in_parts_only(make_trained: Make, tmp_path: Path) -> None:
    side, tile = 20_000, 2_000
    grey = zlib.compress(np.full((tile, tile, 3), 90, np.uint8).tobytes())
    path = tiled_tiff(tmp_path / "huge.tif", (side, side), [grey], tile)
    opened = open_regions(path)
    assert opened is not None
    assert (opened.read(3_990, 9_000, 4_010, 9_004) == 90).all()
    assert len(opened._decoded) == 2
    with pytest.raises(InputError) as refused:
        read_image(path)
    assert str(refused.value) == (
        f"image {path}: found 400,000,000 pixels, expected at most 178,956,970; `predict` decodes it whole with "
        "--max-pixels 400000000, and a TIFF of tiles or strips part by part with --native --tile SIZE"
    )


def test_files_that_are_no_tiff_or_one_strip_are_read_whole(tmp_path: Path) -> None:
    for name, options in (("a.png", {}), ("a.tif", {"compression": "tiff_lzw", "strip_size": 1 << 30})):
        Image.fromarray(NOISE).save(tmp_path / name, **options)
        assert open_regions(tmp_path / name) is None
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(tmp_path / "turned.tif", exif=exif)
    assert open_regions(tmp_path / "turned.tif") is None


def test_a_damaged_strip_is_named(
    make_trained: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = deflated(NOISE, 64)
    tiles[5] = b"nonsense"
    path = tiled_tiff(tmp_path / "a.tif", SIZE, tiles, 64)
    done = predict_files(make_trained(), {path: "a"}, [], native=True, tile=(96, 96))
    assert done.images == 0
    (problem,) = done.problems
    assert problem.startswith(f"image {path}, rows 64 to 128: found ")


def test_the_limit_is_told_and_raised(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(NOISE).save(path)
    model = tmp_path / "model.safetensors"
    make_trained().save(model)

    def run(*more: str) -> int:
        words = ["predict", str(model), str(path), "--out", str(out), "--device", "cpu", *more]
        monkeypatch.setattr(sys, "argv", ["udas-fast", *words])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert run() == 2
    assert (
        "found 31,500 pixels, expected at most 20,000; `predict` decodes it whole with --max-pixels 31500"
        in (capsys.readouterr().err)
    )
    assert run("--max-pixels", "31500") == 0
    assert "DecompressionBomb" not in capsys.readouterr().err
    assert Image.MAX_IMAGE_PIXELS == 10_000


def test_warnings_of_libraries_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(standalone_mode: bool) -> None:
        warnings.warn("a library's", UserWarning, stacklevel=1)
        warnings.warn("udas_fast: ours", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(cli, "app", noisy)
    cli.main()
    assert capsys.readouterr().err == "udas-fast: udas_fast: ours\n"


def test_pillows_limit_is_its_own_outside_the_context() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with allowing(7):
        assert Image.MAX_IMAGE_PIXELS == 4
    with allowing(None):
        assert before == Image.MAX_IMAGE_PIXELS
    assert before == Image.MAX_IMAGE_PIXELS
