"""`udas-fast evaluate` and what says that a model was selected: tables, exports, predictions."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_words import train_words
from PIL import Image

from udas_fast import DataConfig, TrainedModel, Trainer
from udas_fast.data import CAMVID
from udas_fast.recipes import get_recipe, override, small

RunCli = Callable[..., tuple[int, str, str]]


def test_a_selected_model_is_said_to_be_one(run_cli: RunCli, camvid_root: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "run", tmp_path / "scores.json"
    code, _, stderr = run_cli(*train_words(camvid_root, out, "--evaluate-every", 2, "--keep-best"))
    assert code == 0, stderr
    steps = [json.loads(line)["step"] for line in (out / "scores.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert "source: mIoU" in stderr

    best, data = out / "best.safetensors", f"camvid:{camvid_root}"
    code, stdout, stderr = run_cli("evaluate", best, "--data", data, "--json", scores, "--workers", 1)
    assert code == 0, stderr
    assert "selected: best on val at step" in stdout
    assert "best on val at step" in json.loads(scores.read_text())["protocol"]["selected"]
    code, _, stderr = run_cli("predict", best, camvid_root / "images/val", "--out", tmp_path / "labels")
    assert code == 0, stderr
    assert f"NOTICE: {best} is not the last model of its run: best on val at step" in stderr
    code, stdout, stderr = run_cli("evaluate", out, "--data", data)
    assert code == 0, stderr
    assert "selected" not in stdout + stderr


@pytest.fixture(scope="module")
def two_runs(camvid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    runs = []
    for seed in range(2):
        recipe = override(
            small(get_recipe("no_adaptation"), size=(32, 48), steps=3, batch_size=2), ["model.width=4"]
        )
        data = DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}", engine="torch")
        runs.append(tmp_path_factory.mktemp("runs") / str(seed))
        Trainer(recipe, data, run_dir=runs[-1], seed=seed, device="cpu").fit()
    return runs


def test_views_and_several_models(
    run_cli: RunCli, two_runs: list[Path], camvid_root: Path, tmp_path: Path
) -> None:
    data = ("--data", f"camvid:{camvid_root}", "--json", tmp_path / "scores.json")
    code, stdout, stderr = run_cli("evaluate", *two_runs, *data, "--views", "flip,0.75,1,1.25")
    assert code == 0, stderr
    assert "scales 1, 0.75, 1.25 with flips" in stdout
    assert "mean of 2 models" in stdout
    protocol = json.loads((tmp_path / "scores.json").read_text())["protocol"]
    assert (protocol["models"], protocol["scales"], protocol["flips"]) == (2, [1.0, 0.75, 1.25], True)
    for words, message in (
        ((two_runs[0], "--views", "flop"), "--views: found 'flop', expected flip or a scale"),
        ((*two_runs, "--calibrate"), "--calibrate: found 2 models, expected one"),
    ):
        code, _, stderr = run_cli("evaluate", *words, *data)
        assert code == 2
        assert message in stderr


def test_models_of_other_sizes_or_classes_have_no_mean(
    run_cli: RunCli, two_runs: list[Path], camvid_root: Path, tmp_path: Path
) -> None:
    other = TrainedModel.load(two_runs[1])
    renamed = dataclasses.replace(CAMVID, names=("heaven", *CAMVID.names[1:]))
    for name, change, message in (
        ("size", {"size": (40, 48)}, "found (40, 48), expected (32, 48)"),
        ("classes", {"classes": renamed}, "number 0 is 'heaven' and"),
    ):
        dataclasses.replace(other, **change).save(tmp_path / name)
        code, _, stderr = run_cli("evaluate", two_runs[0], tmp_path / name, "--data", f"camvid:{camvid_root}")
        assert code == 2
        assert message in stderr


def test_scores_of_each_image_and_the_worst(
    run_cli: RunCli, two_runs: list[Path], camvid_root: Path, tmp_path: Path
) -> None:
    table, sheet = tmp_path / "images.csv", tmp_path / "worst.png"
    words = ("evaluate", two_runs[0], "--data", f"camvid:{camvid_root}", "--json", tmp_path / "all.json")
    code, stdout, stderr = run_cli(*words, "--per-image", table, "--worst", sheet)
    assert code == 0, stderr
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["0000", "0001"]
    assert list(rows[0])[:4] == ["image", "pixels", "pixel_accuracy", "miou"]
    scores = json.loads((tmp_path / "all.json").read_text())
    pixels = [int(row["pixels"]) for row in rows]
    hits = sum(p * float(row["pixel_accuracy"]) for p, row in zip(pixels, rows, strict=True))
    assert hits / sum(pixels) == pytest.approx(scores["pixel_accuracy"], abs=1e-4)
    worst = min(rows, key=lambda row: float(row["miou"]))["image"]
    assert f"images of the lowest mIoU, %: {worst} " in stdout
    with Image.open(sheet) as picture:
        assert picture.width > picture.height / 2


def test_the_temperature_is_kept_and_used(
    run_cli: RunCli, two_runs: list[Path], camvid_root: Path, tmp_path: Path
) -> None:
    model, data = tmp_path / "model.safetensors", f"camvid:{camvid_root}"
    before = TrainedModel.load(two_runs[0])
    before.save(model)
    code, stdout, stderr = run_cli("evaluate", model, "--data", data, "--split", "train", "--calibrate")
    assert code == 0, stderr
    after = TrainedModel.load(model)
    assert f"temperature {after.temperature:.3f} is kept in {model}" in stdout
    assert f"temperature {after.temperature:.3g}" in stdout.splitlines()[-1]
    assert after.temperature != 1
    image = np.asarray(Image.open(camvid_root / "images/val/0000.png"))
    (label, confidence), (label_before, confidence_before) = after.predict(image), before.predict(image)
    assert (label == label_before).all()
    assert ((confidence < confidence_before) == (after.temperature > 1)).mean() > 0.99


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep-best",), "keep_best: found no evaluate_every, expected"),
        (("--evaluate-every", 0), "Invalid value for '--evaluate-every'"),
    ],
)
def test_wrong_options(
    run_cli: RunCli, camvid_root: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    code, _, stderr = run_cli(*train_words(camvid_root, tmp_path / "run", *words))
    assert code == 2
    assert message in stderr
