"""Input of `TrainedModel.predict`: arrays, Pillow images and files, without warnings of libraries."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udas_fast import TrainedModel
from udas_fast.errors import InputError

Make = Callable[..., TrainedModel]
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _equal(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_array_an_image_and_a_path_give_the_same(
    make_trained: Make, tmp_path: Path, image: np.ndarray
) -> None:
    trained, path = make_trained(), tmp_path / "photo.png"
    expected, picture = trained.predict(image), Image.fromarray(image)
    picture.save(path)
    read_only = np.asarray(picture)
    assert not read_only.flags.writeable
    for same in (read_only, picture, Image.open(path), path, str(path)):
        _equal(trained.predict(same), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_an_image_of_another_mode_is_converted(make_trained: Make, image: np.ndarray, mode: str) -> None:
    trained = make_trained()
    if mode == "I;16":
        picture = Image.fromarray(image[..., 0].astype(np.uint16) << 8 | 0x3F)
        rgb = np.repeat(image[..., :1], 3, axis=2)
    else:
        picture = Image.fromarray(image).convert(mode)
        rgb = np.array(picture.convert("RGB"))
    if mode == "P":
        picture.info["transparency"] = bytes(range(256))  # Pillow warns about bytes here
    _equal(trained.predict(picture), trained.predict(rgb))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)],
)
def test_images_and_files_are_turned_upright(
    make_trained: Make,
    tmp_path: Path,
    image: np.ndarray,
    orientation: int,
    turned: Callable[[np.ndarray], np.ndarray],
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    trained, picture = make_trained(), Image.open(tmp_path / "photo.png")
    expected = trained.predict(turned(image))
    _equal(trained.predict(tmp_path / "photo.png"), expected)
    _equal(trained.predict(picture), expected)
    assert picture.size == (56, 40)  # the user's image is unchanged
    np.testing.assert_array_equal(np.asarray(picture), image)


def test_a_large_image_is_read_without_pillows_warning(
    make_trained: Make, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(image).save(tmp_path / "aerial.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 56 - 1)
    trained = make_trained()
    _equal(trained.predict(tmp_path / "aerial.png"), trained.predict(image))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (None, "NoneType"),
        ([[1, 2], [3, 4]], "list"),
        (b"photo.png", "bytes"),
        (torch.zeros(40, 56, 3, dtype=torch.uint8), "Tensor"),
        (np.zeros((40, 56), np.uint8), r"uint8 \[40, 56\]"),
        (np.zeros((0, 56, 3), np.uint8), r"uint8 \[0, 56, 3\]"),
        (np.zeros((3, 40, 56), np.uint8), r"uint8 \[3, 40, 56\]"),
        (np.zeros((40, 56, 3)), r"float64 \[40, 56, 3\]"),
        (Image.new("F", (56, 40)), "32-bit grey pixels"),
        ("missing.png", "no such file"),
        (Path(__file__), "data that is not an image"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(make_trained: Make, wrong: object, found: str) -> None:
    with pytest.raises(InputError, match=rf"^image.*: found {found}.*, expected ") as caught:
        make_trained().predict(wrong)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_closed_image_is_refused_in_a_sentence(
    make_trained: Make, tmp_path: Path, image: np.ndarray
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    closed = Image.open(path)
    closed.close()
    cut = tmp_path / "cut.png"
    cut.write_bytes(path.read_bytes()[:2000])
    with Image.open(cut) as picture:
        for wrong in (cut, picture, closed):
            with pytest.raises(InputError, match="^image.*: found .*, expected "):
                make_trained().predict(wrong)


@pytest.mark.parametrize("tile", [64, "64x64", (64,), (64, 64.0), (0, 64), {"h": 64}])
def test_a_tile_of_a_wrong_type_is_refused_in_a_sentence(
    make_trained: Make, image: np.ndarray, tile: object
) -> None:
    with pytest.raises(InputError, match=r"^tile: found .*, expected \(H, W\) in pixels, or None"):
        make_trained().predict(image, tile=tile)


@pytest.mark.parametrize("path", [5, None, b"model", ["run"]])
def test_a_model_of_a_wrong_type_is_refused_in_a_sentence(path: object) -> None:
    with pytest.raises(InputError, match="^model: found .*, expected the path of a run's folder"):
        TrainedModel.load(path)


@pytest.mark.slow
def test_a_prediction_needs_neither_matplotlib_nor_tensorboard(make_trained: Make, tmp_path: Path) -> None:
    make_trained().save(tmp_path / "model.safetensors")
    code = (
        "import sys; sys.modules |= dict.fromkeys(('matplotlib', 'tensorboard'))\n"  # an import of them fails
        "import numpy as np, udas_fast as uf\n"
        "label, _ = uf.load(sys.argv[1]).predict(np.zeros((8, 9, 3), np.uint8))\n"
        "assert label.shape == (8, 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.safetensors"], check=True)
