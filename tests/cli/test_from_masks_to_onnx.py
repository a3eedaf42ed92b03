"""The path of a fresh user: colour masks, few labels, scores on the way, a network of one's own, a file to deploy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RunCli = Callable[..., tuple[int, str, str]]
COLOURS = np.array([[60, 200, 60], [120, 120, 120], [220, 30, 30]], np.uint8)
DATASET = 'classes: {grass: "#3cc83c", road: "#787878", car: "#dc1e1e"}\n'
NETWORK = """
from torch import nn

def build(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))
"""


def _draw(root: Path, split: str, number: int, *, photo: bool, mask: bool) -> None:
    """Write a photo, and a mask whose colours are the classes."""
    label = np.random.default_rng([number, len(split)]).integers(0, 3, (4, 6)).repeat(8, 0).repeat(8, 1)
    shades = COLOURS[label] // 2 + np.random.default_rng(number).integers(0, 60, (32, 48, 1), np.uint8)
    for kind, pixels, wanted in (("images", shades, photo), ("labels", COLOURS[label], mask)):
        if wanted:
            Image.fromarray(pixels).save(root / f"{kind}/{split}/{number:04d}.png")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A simulator's 20 images, and 200 real ones of which the first 20 have a mask; the working folder has mynet.py."""
    for name, count, labelled in (("sim", 20, 20), ("real", 200, 20)):
        root = tmp_path / name
        for split, images in (("train", count), ("val", 8)):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
            for number in range(images):
                _draw(root, split, number, photo=True, mask=split == "val" or number < labelled)
        (root / "dataset.yaml").write_text(DATASET)
    (tmp_path / "mynet.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "folder:sim", "folder:real"
    sys.modules.pop("mynet", None)


@pytest.mark.slow
def test_from_masks_to_a_scored_onnx_file_and_the_next_labels(
    run_cli: RunCli, folders: tuple[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    sim, real = folders
    own = ("--network", "mynet:build")

    def run(*words: object) -> str:
        code, stdout, stderr = run_cli(*words)
        assert code == 0, stderr
        return stdout

    assert "200 images (200 of 32x48), 20 labelled" in run("check-data", real)
    words = ("--small", "32x48", "--steps", 6, "--device", "cpu", "--engine", "torch", *own)
    train = ("train", "joint", "--source", sim, "--target", real, *words)
    told = run(*train, "--num-labels", "all", "--evaluate-every", 2, "--keep-best", "--out", "run")
    assert "20 labelled" in told
    lines = [json.loads(line) for line in (tmp_path / "run/scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert (tmp_path / "run/best.safetensors").is_file()

    run("evaluate", "run", "--data", real, *own, "--json", "own.json")
    run(
        "export",
        "run",
        *own,
        "--format",
        "onnx",
        "--output",
        "labels",
        "--size",
        "32x48",
        "--out",
        "seg.onnx",
    )
    run("evaluate", "seg.onnx", "--data", real, "--json", "onnx.json")
    model, file = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "onnx"))
    assert file["protocol"]["images"] == model["protocol"]["images"] == 8
    assert abs(100 * file["miou"] - 100 * model["miou"]) < 0.1

    run("rank", "run", *own, "--data", real, "--n", 5, "--spread", "--out", "next")
    chosen = (tmp_path / "next/next.txt").read_text().split()
    assert len(chosen) == 5
    assert all(int(name) >= 20 for name in chosen)  # images without a label
    for name in chosen:
        _draw(tmp_path / "real", "train", int(name), photo=False, mask=True)
    assert "5 labelled" in run(*train, "--num-labels", "next/next.txt", "--out", "second")
