"""Scores in the repository stand for runs whose folders are gone, as long as command and recipe are the same."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from udas_fast.recipes import Changes, override
from udas_fast.tools.study.collect import collect
from udas_fast.tools.study.plan import StudyPlan, StudyRun
from udas_fast.tools.study.rows import StudyRow, Task

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import harness
import run_records


def _plan(root: Path, steps: int = 6) -> StudyPlan:
    task = Task(
        f"camvid:{root}",
        f"camvid:{root}",
        changes=Changes(small=(32, 48), steps=steps),
        settings=("model.width=4", "input.batch_size=1"),
        engine="torch",
        device="cpu",
    )
    rows = (StudyRow("No adaptation", "no_adaptation"), StudyRow("Joint", "joint", 2))
    return StudyPlan("methods", task, rows, tuple(StudyRun(row, task, 0) for row in rows), steps)


@pytest.mark.slow
def test_a_table_goes_on_with_recorded_scores(
    camvid_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    plan = _plan(camvid_folder("data"))
    folder = tmp_path / "pair/settings/runs"
    first, second = (folder / run.folder for run in plan.runs)
    assert run_records.make_table(plan, folder, "command", only=["no_adaptation"]) is None
    assert first.exists()
    assert not second.exists()
    whole = tmp_path / "whole/pair/settings/runs"
    shutil.copytree(first, whole / first.name)
    shutil.rmtree(first)

    table = run_records.make_table(plan, folder, "command")
    assert not first.exists()
    shutil.copytree(second, whole / second.name)
    assert table == collect(plan, whole, "command")
    shutil.rmtree(folder)
    assert run_records.make_table(plan, folder, "command") == table
    assert not folder.exists()


def test_a_record_of_another_recipe_or_command_does_not_count(
    camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _plan(camvid_root).runs[0]
    path = tmp_path / "records.json"
    record = {"command": "", "recipe": "", "environment": {}, "step_seconds": None, "phases": {}}
    run_records.write_records(path, {run.folder: {**record, **run_records.identity(run)}})
    assert run_records.is_recorded(run, path)
    assert not run_records.is_recorded(_plan(camvid_root, steps=8).runs[0], path)  # another command
    changed = override(run.recipe(), ["input.batch_size=3"])
    monkeypatch.setattr(
        StudyRun, "recipe", lambda _: changed
    )  # as a new default does, which no command shows
    assert not run_records.is_recorded(run, path)
