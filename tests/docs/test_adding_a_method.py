"""The examples of docs/adding-a-method.md: files outside the package that train, resume and pass the page's tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from udas_fast.objectives import Batches
from udas_fast.recipes import Changes, Recipe, get_recipe, load_method_file
from udas_fast.testing import (
    TinyNetwork,
    assert_replays,
    assert_resumes,
    make_context,
    take_step,
    tiny,
)
from udas_fast.tools.study import Task, plan_study, run_study

pytestmark = pytest.mark.usefixtures("own_methods")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own with the page's files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _recipe(folder: Path, name: str) -> Recipe:
    load_method_file(folder / f"{name}.py")
    return get_recipe(name)


def _command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "udas_fast", *map(str, words)]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _udas_fast(folder: Path, *words: str | Path) -> str:
    """Run a command in ``folder``, in a process that knows nothing of this one; return its standard output."""
    done = subprocess.run(
        _command(*words), cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _train(name: str, data: Path, run: str, steps: int) -> list[str]:
    """Return the page's command, on a little dataset."""
    (line,) = re.findall(rf"^udas-fast (train {name} .*)$", PAGE, re.MULTILINE)
    given = {"streets:sim": f"camvid:{data}", "streets:real": f"camvid:{data}", "96x192": "32x48"}
    words = [given.get(word, word) for word in line.split()]
    words[words.index("--steps") + 1] = str(steps)
    words[words.index("--out") + 1] = run
    return [*words, "--set", "model.width=4", "--device", "cpu", "--engine", "torch"]


def _losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "seg" in line]


def test_each_example_fits_on_a_page() -> None:
    assert set(FILES) == {"maximum_squares.py", "mean_teacher.py", "test_mean_teacher.py"}
    lines = {name: len([line for line in text.splitlines() if line.strip()]) for name, text in FILES.items()}
    assert lines["maximum_squares.py"] < 50
    assert lines["mean_teacher.py"] < 110


def test_maximum_squares_resumes_and_replays_to_the_same_bits(folder: Path) -> None:
    recipe = tiny(_recipe(folder, "maximum_squares"), steps=6)
    assert_resumes(recipe)
    assert_replays(recipe)


@pytest.mark.slow
def test_the_pages_own_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {}
    exec(FILES["test_mean_teacher.py"], names)
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    test()
    monkeypatch.delitem(sys.modules, "mean_teacher")


def test_the_teacher_needs_nothing_else_in_16_bits(folder: Path) -> None:
    recipe = replace(tiny(_recipe(folder, "mean_teacher"), steps=4), precision="bf16")
    assert_resumes(recipe)


def test_maximum_squares_is_its_formula(folder: Path, batches: Batches, tiny_net: TinyNetwork) -> None:
    objective = _recipe(folder, "maximum_squares").stages[0].objective.build(4)
    losses = take_step(objective, tiny_net, batches, make_context())
    logits = tiny_net.primary(tiny_net.norm(tiny_net.body(batches.unlabelled.image / 255)).relu()).double()
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(losses["squares"].double(), -(p**2).sum() / (2 * p[:, 0].numel()))


def test_the_teacher_is_the_mean_of_the_first_students(
    folder: Path, batches: Batches, tiny_net: TinyNetwork
) -> None:
    objective = _recipe(folder, "mean_teacher").stages[0].objective.build(4)
    objective.on_round_start(tiny_net)
    seen = [tiny_net.body.weight.detach().double()]
    for _ in range(3):
        losses = take_step(objective, tiny_net, batches, make_context())
        assert 0 <= losses["kept"] <= 1
        with torch.no_grad():
            for parameter in tiny_net.parameters():
                parameter -= 0.1 * parameter.grad
        objective.after_step(tiny_net)
        seen.append(tiny_net.body.weight.detach().double())
    teacher = objective.teacher.body.weight
    assert teacher.grad is None
    torch.testing.assert_close(teacher.double(), torch.stack(seen).mean(0))
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.slow
def test_maximum_squares_trains_and_is_reported(folder: Path, camvid_root: Path) -> None:
    _udas_fast(folder, *_train("maximum_squares", camvid_root, "run", 2))
    losses = _losses(folder / "run")[-1]
    assert -0.5 <= losses["squares"] <= -0.5 / 11  # −½ Σ p² of 11 classes: from one alone to all equal
    assert losses["seg"] > 0
    assert "maximum_squares" in _udas_fast(folder, "recipes", "--method-file", "maximum_squares.py")
    _udas_fast(folder, "report", "run")
    assert "maximum_squares" in (folder / "run/report.html").read_text()


@pytest.mark.slow
def test_a_study_has_the_examples_as_rows(folder: Path, camvid_root: Path) -> None:
    load_method_file(folder / "maximum_squares.py")
    load_method_file(folder / "mean_teacher.py")
    data = f"camvid:{camvid_root}"
    changes = Changes(small=(32, 48), steps=12)
    task = Task(data, data, changes=changes, settings=("model.width=4",), engine="torch", device="cpu")
    plan = plan_study("methods", task, seeds=[0], num_labels=[0])
    own = [run for run in plan.runs if run.row.recipe in ("maximum_squares", "mean_teacher")]
    assert len(own) == 2
    for run in own:
        words = run.command("out")
        assert words[words.index("--method-file") + 1] == str(folder / f"{run.row.recipe}.py")
    one = replace(plan, rows=(own[1].row,), runs=(own[1],))
    run_study(one, folder / "study", command="udas-fast study methods")
    assert own[1].row.recipe in (folder / "study/methods/table.md").read_text()


@pytest.mark.slow
def test_a_killed_mean_teacher_goes_on_to_the_same_bits(folder: Path, camvid_root: Path) -> None:
    _udas_fast(folder, *_train("mean_teacher", camvid_root, "whole", 8))
    run = folder / "run"
    command = _command(*_train("mean_teacher", camvid_root, "run", 8), "--checkpoint-every", "1")
    process = subprocess.Popen(command, cwd=folder, env=_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((run / "checkpoints").glob("*.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "model.safetensors").exists()
    assert yaml.safe_load((run / "run.yaml").read_text())["methods"] == [str(folder / "mean_teacher.py")]

    _udas_fast(folder, "train", "--resume", "run", "--device", "cpu")
    found, expected = (load_file(folder / name / "model.safetensors") for name in ("run", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
