"""Datasets from elsewhere: pipes among the images, links that lead out, names that a terminal would obey."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import check_dataset, labels, listed, open_dataset, read_image
from udas_fast.data.files import encoded_image, find_bit_depth
from udas_fast.data.labels import IdMap, read_ids
from udas_fast.errors import InputError, bad


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_image_and_no_label(tmp_path: Path) -> None:
    """Opening one waits until somebody writes into it."""
    pipe = tmp_path / "0000.png"
    os.mkfifo(pipe)
    for read in (read_image, read_ids, encoded_image):
        with pytest.raises(InputError, match="0000.png: found no regular file, expected"):
            read(pipe)
    with pytest.raises(InputError, match="found no regular file"):
        read_image(Path("/dev/zero"))
    assert find_bit_depth([pipe]) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_a_dataset_is_one_problem(camvid_folder: Callable[..., Path]) -> None:
    root = camvid_folder("data", train=4)
    for path in (root / "images/train/0001.png", root / "labels/train/0002.png"):
        path.unlink()
        os.mkfifo(path)
    report = check_dataset(open_dataset(f"camvid:{root}", "train"))
    assert len(report.problems) == 2
    assert all("no regular file" in problem for problem in report.problems)


@pytest.mark.parametrize("name", ["classes.txt", "labelmap.txt", "dataset.yaml"])
def test_a_list_of_classes_is_in_the_folder(name: str, tmp_path: Path) -> None:
    """A dataset from elsewhere could have any file of the machine read, and shown in a message."""
    root, secret = tmp_path / "data", tmp_path / "secret"
    (root / "images/train").mkdir(parents=True)
    (root / "labels/train").mkdir(parents=True)
    for kind in ("images", "labels"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / kind / "train/0.png")
    secret.write_text("the key\n")
    (root / name).symlink_to(secret)
    with pytest.raises(InputError, match=f"{name}: found a link to {secret}, expected a file in the folder"):
        open_dataset(f"folder:{root}", "train")
    (root / name).unlink()
    (root / "lists").mkdir()
    (root / "lists/all.txt").write_text("road\ncar\n")
    (root / "classes.txt").symlink_to("lists/all.txt")
    assert open_dataset(f"folder:{root}", "train").classes.names == ("road", "car")


def test_no_name_of_a_file_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    name = "a\x1b[2J\nb\u202e.png"
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    assert r"a\x1b[2J\nb\u202e.png: found " in str(caught.value)
    assert str(bad("straße", "é\x07", "日本")) == r"straße: found é\x07, expected 日本"
    assert listed([name, "0001"]) == r"2 (a\x1b[2J\nb\u202e.png, 0001)"


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_large_labels_are_looked_up_in_parts(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint16 if len(shape) == 2 else np.uint8)
    colours = {r << 16 | g << 8 | b: (r + g + b) % 3 for r in range(3) for g in range(3) for b in range(3)}
    id_map = IdMap({0: 2, 1: 1, 2: 0}, colours)
    whole = id_map(pixels, tmp_path)
    monkeypatch.setattr(labels, "PART", 10)
    assert np.array_equal(id_map(pixels, tmp_path), whole)
    pixels[6, 4] = 9
    with pytest.raises(InputError, match="id 9|colour"):
        id_map(pixels, tmp_path)
