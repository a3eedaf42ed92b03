"""`udas-fast check-data`, `recipes`, `doctor` and `plan`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_words import TINY
from PIL import Image

from udas_fast.cli.lists import own_lists, stored_list


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


@pytest.mark.parametrize("name", ["recipes", "kinds"])
def test_the_lists_in_files_are_those_of_the_package(name: str) -> None:
    """After a change of a recipe or a kind: python -m udas_fast.cli.lists."""
    assert stored_list(name) == own_lists()[name]


@pytest.mark.parametrize("words", ["recipes", "kinds", "--help", "--version", "train --help"])
def test_light_commands_import_neither_torch_nor_matplotlib(words: str) -> None:
    script = (
        "import sys, atexit\n"
        f"sys.argv = ['udas-fast', *{words.split()}]\n"
        "atexit.register(lambda: print('\\nimported', {'torch', 'matplotlib', 'numpy'} & set(sys.modules)))\n"
        "from udas_fast.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported set()"
    assert len(done.stdout.splitlines()) > 2


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
