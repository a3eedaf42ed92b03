"""The examples of docs/adding-a-method.md: files outside the package that train, resume, join a study and a report."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from udas_fast import cli
from udas_fast.objectives import Batches
from udas_fast.recipes import Recipe, all_recipes, get_recipe, load_method_file
from udas_fast.testing import TinyNetwork, assert_replays, assert_resumes, make_context, take_step, tiny
from udas_fast.tools.study import rows

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


@pytest.mark.slow
def test_each_example_fits_on_a_page_and_is_listed(folder: Path) -> None:
    assert set(FILES) == {"maximum_squares.py", "my_dacs.py", "test_my_dacs.py"}
    lines = {name: len([line for line in text.splitlines() if line.strip()]) for name, text in FILES.items()}
    assert lines["maximum_squares.py"] < 50
    assert lines["my_dacs.py"] < 100
    files = ["--method-file", "maximum_squares.py", "--method-file", "my_dacs.py"]
    listed = _udas_fast(folder, "recipes", *files)
    assert "maximum_squares" in listed
    assert "my_dacs" in listed


@pytest.mark.slow
def test_maximum_squares_resumes_and_replays_to_the_same_bits(folder: Path) -> None:
    recipe = tiny(_recipe(folder, "maximum_squares"), steps=6)
    assert_resumes(recipe)
    assert_replays(recipe)


@pytest.mark.slow
def test_the_pages_own_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(FILES["test_my_dacs.py"], names)
    names["test_my_dacs_keeps_the_rules"]()
    monkeypatch.delitem(sys.modules, "my_dacs")


def test_dacs_needs_nothing_else_in_16_bits(folder: Path) -> None:
    assert_resumes(replace(tiny(_recipe(folder, "my_dacs"), steps=4), precision="bf16"))


def test_maximum_squares_is_its_formula(folder: Path, batches: Batches, tiny_net: TinyNetwork) -> None:
    objective = _recipe(folder, "maximum_squares").stages[0].objective.build(4)
    losses = take_step(objective, tiny_net, batches, make_context())
    logits = tiny_net.primary(tiny_net.norm(tiny_net.body(batches.unlabelled.image / 255)).relu()).double()
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(losses["squares"].double(), -(p**2).sum() / (2 * p[:, 0].numel()))


def test_the_teacher_of_dacs_is_the_mean_of_the_first_students(
    folder: Path, batches: Batches, tiny_net: TinyNetwork
) -> None:
    objective = _recipe(folder, "my_dacs").stages[0].objective.build(4)
    objective.on_round_start(tiny_net)
    seen = [tiny_net.body.weight.detach().double()]
    for _ in range(3):
        take_step(objective, tiny_net, batches, make_context())
        with torch.no_grad():
            for parameter in tiny_net.parameters():
                parameter -= 0.1 * parameter.grad
        objective.after_step(tiny_net)
        seen.append(tiny_net.body.weight.detach().double())
    teacher = objective.teacher.network.body.weight
    assert teacher.grad is None
    torch.testing.assert_close(teacher.double(), torch.stack(seen[1:]).mean(0))
    assert not torch.equal(seen[0], seen[-1])


def test_dacs_pastes_half_of_the_classes_and_weighs_the_teachers_labels(
    folder: Path, batches: Batches, tiny_net: TinyNetwork
) -> None:
    labels = batches.source.label
    with torch.no_grad():
        seen, _ = copy.deepcopy(tiny_net).eval()(batches.unlabelled.image / 255)
    confidence, pseudo = F.interpolate(seen.double(), labels.shape[1:], mode="bilinear").softmax(1).max(1)
    threshold = confidence.quantile(0.7).item()
    config = _recipe(folder, "my_dacs").stages[0].objective
    objective = replace(config, threshold=threshold, auxiliary_weight=0.0).build(4)
    objective.on_round_start(tiny_net)
    batch = objective.prepare_batch(batches, make_context())
    for label, pasted in zip(labels, batch.pasted, strict=True):
        there, chosen = set(label.unique().tolist()) - {255}, set(pasted.unique().tolist()) - {255}
        assert len(chosen) == math.ceil(len(there) / 2)
        inside = torch.isin(label, torch.tensor(sorted(chosen), dtype=torch.uint8))
        assert torch.equal(pasted, torch.where(inside, label, 255))

    losses = objective.training_step(tiny_net, batch, make_context())
    torch.testing.assert_close(losses["sure"].item(), 0.3, rtol=0, atol=2e-3)
    with torch.no_grad():
        logits, _ = tiny_net(batch.mixed / 255)
    inside = batch.pasted != 255
    label = torch.where(inside, batch.pasted, pseudo)
    ce = F.cross_entropy(
        F.interpolate(logits.double(), labels.shape[1:], mode="bilinear"), label, reduction="none"
    )
    torch.testing.assert_close(losses["mixed"].double(), torch.where(inside, ce, losses["sure"] * ce).mean())


@pytest.mark.slow
def test_a_killed_dacs_goes_on_to_the_same_bytes(folder: Path, camvid_root: Path) -> None:
    _udas_fast(folder, *_train("my_dacs", camvid_root, "whole", 8))
    run = folder / "run"
    command = _command(*_train("my_dacs", camvid_root, "run", 8), "--checkpoint-every", "1")
    process = subprocess.Popen(command, cwd=folder, env=_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((run / "checkpoints").glob("*.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "model.safetensors").exists()
    assert yaml.safe_load((run / "run.yaml").read_text())["methods"] == [str(folder / "my_dacs.py")]

    _udas_fast(folder, "train", "--resume", "run", "--device", "cpu")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (folder / "whole" / name).read_bytes()


@pytest.mark.slow
def test_both_join_the_study_of_methods_and_a_report(
    folder: Path, camvid_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = ("maximum_squares", "my_dacs")  # the package's own recipes have their tests
    monkeypatch.setattr(rows, "all_recipes", lambda: {k: v for k, v in all_recipes().items() if k in joined})
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    data = f"camvid:{camvid_root}"
    words = [
        "--method-file",
        "maximum_squares.py",
        "--method-file",
        "my_dacs.py",
        "--source",
        data,
        "--target",
        data,
    ]
    words += [
        "--num-labels",
        "0",
        "--seeds",
        "0",
        "--small",
        "32x48",
        "--steps",
        "2",
        "--set",
        "model.width=4",
    ]
    words += ["--engine", "torch", "--device", "cpu", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["udas-fast", "study", "methods", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    table = (folder / "out/methods/table.md").read_text()
    assert all(title in table for title in ("maximum_squares", "My DACS"))
    losses = _losses(folder / "out/runs/maximum_squares-seed-0")[-1]
    assert -0.5 <= losses["squares"] <= -0.5 / 11  # −½ Σ p² of 11 classes: from one alone to all equal
    assert losses["seg"] > 0

    _udas_fast(folder, "report", "out/runs/my_dacs-seed-0")
    assert "my_dacs" in (folder / "out/runs/my_dacs-seed-0/report.html").read_text()
