"""Scores of complete runs, kept in the repository, so that a table goes on where the runs themselves are gone.

``results/runs/PAIR-SETTINGS.json`` has each run's command, a digest of its recipe, its environment, scores and step
time. A record counts for a run whose command and recipe are the same; any other is made again.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import harness

from udas_fast.atomic import atomic_write, make_folder
from udas_fast.tools.study.collect import StudyTable, collect, step_seconds
from udas_fast.tools.study.plan import StudyPlan, StudyRun
from udas_fast.tools.study.runner import NO_SCORE, is_run_complete, make_runs

LEFT_OUT = ("confusion_matrix", "reliability")  # of the scores; they stay in the run folders


def records_file(folder: Path) -> Path:
    """Return the file of the records of the runs under ``folder``, PAIR/SETTINGS/runs."""
    return harness.RESULTS / "runs" / f"{folder.parts[-3]}-{folder.parts[-2]}.json"


def make_table(
    plan: StudyPlan, folder: Path, command: str, *, jobs: int = 1, only: Iterable[str] = ()
) -> StudyTable | None:
    """Make the runs of ``plan`` that are neither under ``folder`` nor recorded, record them, and return their table.

    With ``only``, the runs of these recipes alone are made; there is no table, None, while others are missing.
    """
    path, only = records_file(folder), list(only)
    missing = [run for run in plan.runs if not is_recorded(run, path)]
    try:
        make_runs([run for run in missing if not only or run.row.recipe in only], folder, jobs=jobs)
    finally:
        _record([each for run in missing for each in (run.start, run) if each is not None], folder, path)
    if not all(is_recorded(run, path) for run in plan.runs):
        return None
    with tempfile.TemporaryDirectory() as name:
        _unpack(plan.runs, path, Path(name))
        return collect(plan, Path(name), command)


def is_recorded(run: StudyRun, path: Path) -> bool:
    """Return whether the records at ``path`` hold ``run`` as it would be made now."""
    record = _read(path).get(run.folder)
    return record is not None and all(record[key] == value for key, value in identity(run).items())


def identity(run: StudyRun) -> dict[str, str]:
    """Return the run's command and a digest of its recipe with all defaults, which a command does not show."""
    recipe = {key: value for key, value in run.recipe().to_dict().items() if key not in NO_SCORE}
    text = json.dumps(recipe, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return {"command": shlex.join(run.command(f"runs/{run.folder}")), "recipe": digest}


def compact(phases: dict[str, Any]) -> dict[str, Any]:
    """Return scores by phase without their large parts."""
    return {name: {k: v for k, v in s.items() if k not in LEFT_OUT} for name, s in phases.items()}


def write_records(path: Path, records: dict[str, Any]) -> None:
    """Write records by the name of the run's folder, a line each."""
    lines = (f"{json.dumps(name)}: {json.dumps(record)}" for name, record in sorted(records.items()))
    make_folder(path.parent)
    atomic_write("{\n" + ",\n".join(lines) + "\n}\n", path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _record(runs: Iterable[StudyRun], folder: Path, path: Path) -> None:
    """Write the records of those ``runs`` that are complete under ``folder`` beside the others at ``path``."""
    records, before = _read(path), _read(path)
    for run in runs:
        run_dir = folder / run.folder
        if is_run_complete(run, run_dir):
            records[run.folder] = {
                **identity(run),
                "environment": json.loads((run_dir / "environment.json").read_text(encoding="utf-8")),
                "step_seconds": next(iter(step_seconds(run_dir)), None),
                "phases": compact(
                    json.loads((run_dir / run.scores_file).read_text(encoding="utf-8"))["phases"]
                ),
            }
    if records != before:
        write_records(path, records)


def _unpack(runs: Iterable[StudyRun], path: Path, folder: Path) -> None:
    """Write what a table reads of each recorded run, as the run itself wrote it, under ``folder``."""
    records = _read(path)
    for run in runs:
        record, run_dir = records[run.folder], folder / run.folder
        run_dir.mkdir(exist_ok=True)
        (run_dir / run.scores_file).write_text(json.dumps({"phases": record["phases"]}), encoding="utf-8")
        (run_dir / "environment.json").write_text(json.dumps(record["environment"]), encoding="utf-8")
        if seconds := record["step_seconds"]:
            line = json.dumps({"step": 0, "seconds": seconds})
            (run_dir / "timing.jsonl").write_text(line + "\n", encoding="utf-8")
