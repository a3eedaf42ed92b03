"""Studies end to end on tiny data: cut and continued, skipped when complete, stopped by a failing run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from udas_fast import cli
from udas_fast.engine.interrupt import Interrupted
from udas_fast.errors import InputError
from udas_fast.recipes import Changes
from udas_fast.tools.study import StudyPlan, Task, plan_study, run_studies
from udas_fast.tools.study.collect import StudyTable
from udas_fast.tools.study.plan import StudyRun
from udas_fast.tools.study.runner import LOG, is_run_complete, last_line, make_runs
from udas_fast.training.run_folder import RunConfig, read_run_file, write_run_file


def _plan(root: Path, steps: int = 6, study: str = "labels", settings: tuple[str, ...] = ()) -> StudyPlan:
    task = Task(
        f"camvid:{root}",
        f"camvid:{root}",
        changes=Changes(small=(32, 48), steps=steps),
        settings=("model.width=4", "input.batch_size=1", *settings),
        engine="torch",
        device="cpu",
    )
    return plan_study(study, task, seeds=(0,), num_labels=(2,))


def _terminate_when_training(run: Path) -> None:
    """Send this process SIGTERM once ``run`` has recorded its first steps."""
    deadline = time.monotonic() + 300
    metrics = run / "metrics.jsonl"
    while time.monotonic() < deadline:
        if metrics.is_file() and metrics.stat().st_size:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_study_that_was_cut_goes_on_to_the_same_numbers(
    camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    plan = _plan(camvid_folder("data"), steps=120, settings=("online_self_training:input.batch_size=2",))
    runs = tmp_path / "out/runs"
    first, second, *_ = (runs / run.folder for run in plan.runs)

    watcher = threading.Thread(target=_terminate_when_training, args=(first,))
    watcher.start()
    with pytest.raises(Interrupted, match="the same command resumes the runs"):
        run_studies([plan], tmp_path / "out", command="study")
    watcher.join()
    assert list((first / "checkpoints").iterdir())
    assert not (first / "model.safetensors").exists()
    assert not second.exists()

    (table,) = run_studies([plan], tmp_path / "out", command="study")
    # As the study makes it, not in this process: another number of threads rounds otherwise.
    make_runs(plan.runs[:1], tmp_path / "whole")
    for name in ("metrics.jsonl", "scores.json"):
        assert (first / name).read_text() == (tmp_path / "whole" / first.name / name).read_text()

    written = {path.name for path in (tmp_path / "out/labels").iterdir()}
    assert written == {"table.md", "table.csv", "table.json", "sheet.png", "labels.png", "mixed.png"}
    document = json.loads((tmp_path / "out/labels/table.json").read_text())
    assert (document["command"], document["steps"], document["seeds"]) == ("study", 120, [0])
    assert document["protocol"]["images"] == 2
    assert StudyTable.from_dict(document) == table

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    (again,) = run_studies([plan], tmp_path / "out", command="study")
    assert again.rows == table.rows
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.slow
def test_the_first_failing_run_ends_the_study_with_its_last_line(
    camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = camvid_folder("data")
    image = root / "images/train/0001.png"
    image.write_bytes(image.read_bytes()[:60])
    plan = _plan(root, study="ablation")
    with pytest.raises(InputError, match=r"no_adaptation-seed-0: .*0001\.png.*train\.log") as caught:
        run_studies([plan], tmp_path, command="study")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / plan.runs[1].folder).exists()


@pytest.mark.slow
def test_a_run_that_starts_from_another_waits_for_it_and_records_it(
    camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    first = _plan(camvid_folder("data"), study="ablation", settings=("precision=fp32",)).runs[0]
    joint = StudyRun(replace(first.row, title="Joint", recipe="joint", num_labels=2), first.task, 0, first)
    make_runs([joint], tmp_path, jobs=2)
    assert read_run_file(tmp_path / joint.folder, RunConfig)[1].start == str(tmp_path / first.folder)
    assert is_run_complete(joint, tmp_path / joint.folder)
    with pytest.raises(InputError, match=r"start: found .*no_adaptation-seed-0, expected None"):
        is_run_complete(replace(joint, start=None), tmp_path / joint.folder)
    made = (tmp_path / first.folder / "model.safetensors").stat().st_mtime
    assert made < (tmp_path / joint.folder / "run.yaml").stat().st_mtime


def _write_run(plan: StudyPlan, folder: Path, complete: bool = True) -> Path:
    run = plan.runs[0]
    folder = folder / run.folder
    write_run_file(folder, run.recipe(), RunConfig(run.data))
    if complete:
        (folder / "model.safetensors").touch()
    return folder


def test_a_run_is_complete_when_it_has_its_model(camvid_root: Path, tmp_path: Path) -> None:
    plan = _plan(camvid_root)
    assert not is_run_complete(plan.runs[0], tmp_path)
    assert is_run_complete(plan.runs[0], _write_run(plan, tmp_path / "a"))
    assert not is_run_complete(plan.runs[0], _write_run(plan, tmp_path / "b", complete=False))


def test_a_run_of_other_settings_is_refused(camvid_root: Path, tmp_path: Path) -> None:
    folder = _write_run(_plan(camvid_root), tmp_path)
    other = _plan(camvid_root, settings=("input.batch_size=3",))
    sentence = r"input\.batch_size: found 1, expected 3: pass another --out"
    with pytest.raises(InputError, match=sentence):
        make_runs(other.runs, tmp_path)
    moved = replace(other.runs[0], seed=1)
    with pytest.raises(InputError, match="expected"):
        is_run_complete(moved, folder)
    (folder / "run.yaml").write_text("recipe: 3")
    with pytest.raises(InputError, match="damaged"):
        is_run_complete(other.runs[0], folder)


def test_a_folder_where_a_process_trains_is_left_alone(camvid_root: Path, tmp_path: Path) -> None:
    plan = _plan(camvid_root)
    folder = _write_run(plan, tmp_path, complete=False)
    with (folder / LOG).open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="found a process that trains there"):
            make_runs(plan.runs, tmp_path)


def test_missing_data_ends_before_the_first_run(camvid_root: Path, tmp_path: Path) -> None:
    plan = plan_study("labels", _plan(camvid_root).task, seeds=(0,), num_labels=(2000,))
    with pytest.raises(InputError, match="labelled images of camvid: found 2000, expected 1 to 4"):
        run_studies([plan], tmp_path, command="study")
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_use_its_network_ends_the_study_before_the_first_run(
    camvid_root: Path, tmp_path: Path
) -> None:
    distance = "daformer:stages.*.objective.feature_distance={}"
    task = _plan(camvid_root).task
    task = replace(task, settings=(*task.settings, distance), translate="none")
    plan = plan_study("methods", task, seeds=(0,), num_labels=(0,))
    with pytest.raises(InputError, match=r"row DAFormer: .*random first weights.*--set daformer:KEY=VALUE"):
        run_studies([plan], tmp_path / "out", command="study")
    assert not (tmp_path / "out").exists()


def test_batches_that_a_method_cannot_mix_end_the_study_before_the_first_run(
    camvid_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"row Online self-training.*: batch size of stage online: found 1"):
        run_studies([_plan(camvid_root)], tmp_path / "out", command="study")
    assert not (tmp_path / "out").exists()


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("a\n 10%|█ \r 20%|██ \nudas-fast: label x: found 3, expected 2\n\n")
    assert last_line(log) == f"label x: found 3, expected 2 (the log is {log})"
    log.write_text("")
    assert last_line(log).startswith("no output")


def test_numbers_of_the_command_line() -> None:
    arguments = {"kind": "labels", "source": "a:b", "target": "a:b", "out": Path("x")}
    with pytest.raises(InputError, match="--seeds: found '0 1', expected whole numbers from 0 with commas"):
        cli.studies.study(**arguments, seeds="0 1")
    with pytest.raises(InputError, match="--engine: found 'dalli', expected .*did you mean 'dali'"):
        cli.studies.study(**arguments, engine="dalli")
