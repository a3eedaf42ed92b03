"""Translated datasets: labels of the original, and an error for every file that is missing or changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from udas_fast.data import check_dataset, open_dataset
from udas_fast.errors import InputError


@pytest.fixture
def run(camvid_root: Path, tmp_path: Path) -> Path:
    """Return a run's folder with inverted images, as `udas-fast translate` would write them."""
    from PIL import Image

    root = shutil.copytree(camvid_root, tmp_path / "original")
    images = tmp_path / "run/translated/images"
    images.mkdir(parents=True)
    original = open_dataset(f"camvid:{root}", "train")
    files = {}
    for i in range(len(original)):
        path = images / f"{original.id(i)}.png"
        Image.fromarray(255 - original[i].image).save(path)
        content = path.read_bytes()
        files[path.stem] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {
        "source": f"camvid:{root}",
        "split": "train",
        "size": None,
        "classes": original.classes.names,
        "generator": "0" * 64,
        "files": files,
    }
    (tmp_path / "run/translated/manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "run"


def _change(run: Path, **values: object) -> None:
    path = run / "translated/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_images_are_translated_and_labels_are_the_originals(run: Path) -> None:
    original = open_dataset(f"camvid:{run.parent / 'original'}", "train")
    translated = open_dataset(f"translated:{run}", "train")
    assert (len(translated), translated.classes) == (len(original), original.classes)
    for i in range(len(original)):
        assert np.array_equal(translated[i].image, 255 - original[i].image)
        assert np.array_equal(translated[i].label, original[i].label)
        assert translated[i].id == translated.id(i) == original[i].id
        assert translated.files(i).label == original.files(i).label
    report = check_dataset(translated)
    assert not report.problems
    assert np.array_equal(report.pixels, check_dataset(original).pixels)
    assert open_dataset(f"translated:{run}", "train", labelled=False)[0].label is None
    task = open_dataset(f"translated:{run}", "train", classes={"way": ("road",), "other": ("sky", "car")})
    assert np.array_equal(task[0].image, translated[0].image)
    assert np.array_equal(task[0].label == 0, translated[0].label == 3)


def test_missing_images_are_counted(run: Path) -> None:
    files = json.loads((run / "translated/manifest.json").read_text())["files"]
    _change(run, files=files | {"0001": None, "0002": None})
    with pytest.raises(InputError, match="found 2 of 4 files, expected all: `udas-fast translate --resume"):
        open_dataset(f"translated:{run}", "train")


def test_a_file_of_another_size_is_refused_at_once_and_a_changed_one_when_it_is_read(run: Path) -> None:
    path = run / "translated/images/0001.png"
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(f"translated:{run}", "train")
    problems = check_dataset(dataset).problems
    assert len(problems) == 1
    assert "0001.png: found another checksum" in problems[0]
    assert "writes it again" in problems[0]
    path.write_bytes(content[:60])
    with pytest.raises(InputError, match=r"0001.png: found another checksum"):
        open_dataset(f"translated:{run}", "train")
    path.unlink()
    with pytest.raises(InputError, match=r"0001.png: found no such file"):
        open_dataset(f"translated:{run}", "train")


def test_an_original_that_is_missing_or_different(run: Path) -> None:
    root = run.parent / "original"
    for kind in ("images", "labels"):
        (root / kind / "train/0003.png").unlink()
    with pytest.raises(
        InputError, match="found 3 images, not those that were translated, expected the same 4"
    ):
        open_dataset(f"translated:{run}", "train")
    shutil.rmtree(root)
    with pytest.raises(InputError, match="original dataset of translated:.*no folder"):
        open_dataset(f"translated:{run}", "train")


def test_other_classes_splits_and_folders(run: Path) -> None:
    with pytest.raises(InputError, match="split of translated:.*found 'val', expected one of train"):
        open_dataset(f"translated:{run}", "val")
    with pytest.raises(InputError, match="found none, expected the folder of a run of `udas-fast translate`"):
        open_dataset(f"translated:{run.parent}", "train")
    _change(run, classes=["road", "car"])
    with pytest.raises(InputError, match="found classes sky, building.*expected road, car, as when"):
        open_dataset(f"translated:{run}", "train")
    _change(run, sourec="x")
    with pytest.raises(InputError, match="manifest.json: damaged"):
        open_dataset(f"translated:{run}", "train")


@pytest.mark.parametrize("name", ["../../original/images/train/x", "a/b", "..", "a\0b"])
def test_a_manifest_cannot_reach_outside_its_folder(run: Path, name: str) -> None:
    _change(run, files={name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(InputError, match="expected the name of an image, without a folder"):
        open_dataset(f"translated:{run}", "train")


def test_a_manifest_cannot_be_its_own_original(run: Path) -> None:
    _change(run, source=f"translated:{run}")
    with pytest.raises(InputError, match="expected an original dataset"):
        open_dataset(f"translated:{run}", "train")
