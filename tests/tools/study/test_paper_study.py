"""All studies by one command on a made-up GTA5 and Cityscapes: planned, listed and made."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from udas_fast import cli
from udas_fast.engine.memory import GIB
from udas_fast.errors import InputError
from udas_fast.inference import MODEL_FILE
from udas_fast.recipes import Changes
from udas_fast.tools.study import STUDIES, Task, dry_run, plan_paper, plan_study, runner
from udas_fast.tools.study.plan import TranslationRun
from udas_fast.training import labelling
from udas_fast.training.results import Results
from udas_fast.training.run_folder import write_run_file
from udas_fast.training.translation import TranslationConfig


def _write(path: Path, ids: int, seed: int) -> None:
    """Write an image and its label, whose places differ by dataset: {} is the kind of file."""
    label = np.random.default_rng(seed).integers(0, ids, (10, 20), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    image = np.stack([label * 7, 255 - label * 7, label + 30], -1)
    for pixels, names in (
        (image, ("images", "leftImg8bit", "leftImg8bit")),
        (label, ("labels", "gtFine", "gtFine_labelIds")),
    ):
        file = Path(str(path).format(*names))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GTA5 and Cityscapes, three images each."""
    root = tmp_path_factory.mktemp("data")
    for i in range(3):
        _write(root / f"gta5/{{0}}/{i:05d}.png", 35, i)
        for split in ("train", "val"):
            _write(root / f"cityscapes/{{1}}/{split}/ulm/ulm_{i}_{{2}}.png", 34, 10 + i)
    return root


class _Fork:
    """What the runner asks of a process, on a copy of this one: nothing is imported again."""

    def __init__(self, job: runner._Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(job,))
        self._process.start()

    @staticmethod
    def _run(job: runner._Job) -> None:
        with (job.folder / runner.LOG).open("a") as log:
            sys.stdout = sys.stderr = log
            sys.argv = list(job.command)
            cli.main()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        self._process.join()


def _words(data: Path, out: Path) -> list[str]:
    return [
        *(
            "paper",
            "--source",
            f"gta5:{data}/gta5",
            "--target",
            f"cityscapes:{data}/cityscapes",
            "--out",
            str(out),
        ),
        *(
            "--seeds",
            "0",
            "--num-labels",
            "2,0",
            "--small",
            "32x64",
            "--size",
            "32x48",
            "--steps",
            "6",
            "--batch-size",
            "2",
        ),
        *("--set", "model.width=4", "--set", "cyclegan:stages.translation.steps=2", "--engine", "torch"),
        *("--device", "cpu"),
    ]


def _study(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["udas-fast", "study", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs be copies of this process, without pictures of their own."""
    importlib.import_module("torch._dynamo")  # which every run would import for its optimiser
    monkeypatch.setattr(runner, "_start", _Fork)
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setattr(runner, "predictions_figure", lambda *_: None)
    monkeypatch.setattr(Results, "draw", lambda *_: None)
    monkeypatch.setattr(labelling, "_draw", lambda *_: None)


@pytest.fixture
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run need 1.5 GB, which takes no time to predict."""
    module = importlib.import_module("udas_fast.tools.study.dry_run")
    peak = SimpleNamespace(needed=3 * GIB // 2)
    monkeypatch.setattr(module, "predict", lambda *_, **__: [peak])


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "no_prediction")
def test_every_study_is_made_by_one_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = _words(data, out)
    _study(words, monkeypatch)
    made = capsys.readouterr().out
    assert (out / "translation/translated/manifest.json").is_file()
    runs = [path.name for path in (out / "runs").iterdir()]
    for name in runs:
        assert (out / "runs" / name / MODEL_FILE).is_file()
        assert made.splitlines().count(f"{name}: started") == 1
    for study in STUDIES:
        table = json.loads((out / study / "table.json").read_text())
        assert all(row["miou"]["mean"] is not None for row in table["rows"])
    for study in ("ablation", "labels", "methods", "parts"):
        assert (out / study / "mixed.png").is_file()
    gap = json.loads((out / "gap/table.json").read_text())["rows"]
    assert len({row["miou"]["mean"] for row in gap}) == 3  # one network on three datasets

    _study([*words, "--dry-run"], monkeypatch)
    assert f"{len(runs) + 1} runs, {len(runs) + 1} complete" in capsys.readouterr().out


@pytest.mark.usefixtures("no_prediction")
def test_a_dry_run_lists_every_run_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _study([*_words(data, out), "--dry-run"], monkeypatch)
    assert not out.exists()
    text = capsys.readouterr().out
    changes = Changes(small=(32, 64), size=(32, 48), steps=6, batch_size=1)
    task = Task(
        f"gta5:{data}/gta5", f"cityscapes:{data}/cityscapes", f"translated:{out}/translation", changes
    )
    expected = {run.folder for plan in plan_paper(task, seeds=(0,), num_labels=(2, 0)) for run in plan.runs}
    entries = [line for line in text.splitlines() if line.endswith(": 1.5 GB")]
    names = [Path(line.partition(" (")[0]).name for line in entries]
    assert sorted(names) == sorted([*expected, "translation"])
    assert f"{out}/runs/uda-seed-0 (sizes, ablation, methods): 1.5 GB" in entries
    assert f"{len(entries)} runs, 0 complete; at most 1.5 GB on a GPU, by prediction" in text
    assert text.count("\n  udas-fast train ") == len(expected)
    assert text.count("\n  udas-fast translate ") == 1
    assert text.count("\n  udas-fast evaluate ") == 2  # the source, and the translated source


def test_a_translation_of_other_data_is_refused(tmp_path: Path) -> None:
    task = Task("camvid:a", "camvid:b", f"translated:{tmp_path}/gan", makes_translation=True)
    run = TranslationRun(task)
    assert not runner.is_translation_complete(run)
    write_run_file(run.folder, run.recipe(), TranslationConfig(run.data))
    assert not runner.is_translation_complete(run)
    other = TranslationRun(replace(task, source="camvid:c"))
    with pytest.raises(
        InputError, match=r"gan: source: found camvid:.*/a, expected camvid:.*/c: pass another"
    ):
        runner.is_translation_complete(other)


@pytest.mark.slow
def test_dry_runs_need_no_data(tmp_path: Path) -> None:
    changes = Changes(small=(32, 64), steps=6)
    task = Task("gta5:nowhere", "cityscapes:nowhere", changes=changes, settings=("model.width=4",))
    plan = plan_study("networks", task, seeds=(0, 1), num_labels=(2,))
    *entries, total = dry_run([plan], tmp_path / "out")
    for run, entry in zip(plan.runs, entries, strict=True):
        head, command = entry.split("\n  ")
        assert head.startswith(f"{tmp_path}/out/runs/{run.folder} (networks): ")
        assert shlex.split(command) == run.command(f"{tmp_path}/out/runs/{run.folder}")
    assert total.startswith("4 runs, 0 complete; at most ")
    assert not list(tmp_path.iterdir())
