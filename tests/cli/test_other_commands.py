"""`udas-fast check-data`, `recipes`, `doctor` and `plan`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from command_words import TINY
from PIL import Image


def test_check_data_prints_frequencies_and_finds_problems(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path]
) -> None:
    root = camvid_folder("data")
    code, stdout, _ = run_cli("check-data", f"camvid:{root}")
    assert code == 0
    assert "bicyclist" in stdout
    assert "4 images (4 of 24x32)" in stdout
    assert stdout.endswith("no problems\n")
    label = root / "labels/train/0001.png"
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(label)
    code, _, stderr = run_cli("check-data", f"camvid:{root}")
    assert code == 2
    assert "0001.png" in stderr
    assert "77" in stderr


def test_recipes_are_listed_and_shown_as_yaml_that_trains(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from udas_fast.recipes import all_recipes

    code, stdout, _ = run_cli("recipes")
    assert code == 0
    for name, recipe in all_recipes().items():
        assert f"{name}: {recipe.summary}" in stdout
    code, stdout, _ = run_cli("recipes", "show", "no_adaptation")
    assert code == 0
    path, root = tmp_path / "recipe.yaml", camvid_folder("data")
    path.write_text(stdout.replace("lr: 0.00025", "learning_rate: 0.00025"))
    train = ("train", "--recipe", path, "--source", f"camvid:{root}", "--out", tmp_path / "run")
    code, _, stderr = run_cli(*train)
    assert code == 2
    assert "stages[0].optimizer.learning_rate" in stderr
    path.write_text(stdout)
    code, _, stderr = run_cli(*train, "--small", "32x48", "--steps", 1, "--device", "cpu", *TINY)
    assert code == 0, stderr
    code, _, stderr = run_cli("recipes", "show", "no_adaption")
    assert code == 2
    assert "did you mean 'no_adaptation'" in stderr


def test_doctor_names_versions_and_backends(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, stdout, _ = run_cli("doctor")
    assert code == 0
    for word in (torch.__version__, "pseudo_label", "cross_entropy", "CUDA"):
        assert word in stdout


def test_plan_prints_what_fits_and_writes_json(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    small = ("--small", "32x48", "--batch-size", "1,2", "--set", "model.width=4")
    code, out, _ = run_cli(
        "plan", "no_adaptation", *small, "--set", "memory.checkpointing=all", "--json", file
    )
    assert code == 0
    assert re.search(r"^4 GB +all +all *$", out, re.MULTILINE)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["batch_size"], row["checkpointing"]) for row in rows] == [(1, "all"), (2, "all")]
    for row in rows:
        stage = row["stages"]["source"]
        kinds = [size for name, size in stage.items() if name not in ("tensors", "needed")]
        assert stage["tensors"] == sum(kinds) < stage["needed"]
    assert run_cli("plan")[0] == 2
