"""Execution of a study: complete runs are kept, interrupted ones are resumed, several run at the same time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udas_fast.atomic import atomic_write, make_folder, writing
from udas_fast.data.identity import existing_path
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.errors import InputError, bad
from udas_fast.inference import MODEL_FILE
from udas_fast.recipes import Recipe
from udas_fast.tools.study.collect import StudyTable, collect
from udas_fast.tools.study.figures import labels_figure, methods_figure, predictions_figure
from udas_fast.tools.study.plan import StudyPlan, StudyRun
from udas_fast.tools.study.tables import csv_text, markdown
from udas_fast.training.requirements import open_domains
from udas_fast.training.run_folder import RunConfig, lock, read_run_file

LOG = "train.log"
# One thread per run: several run at the same time, and threads that wait for each other slow all of them down.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
FIGURES = {"labels": labels_figure, "methods": methods_figure}


def run_study(plan: StudyPlan, out: Path, *, command: str, jobs: int = 1) -> StudyTable:
    """Make the missing runs of ``plan`` under ``out/runs``, then write ``out/STUDY/``.

    The latter holds table.md, table.csv, table.json and sheet.png, and labels.png or methods.png for these studies.
    Studies with the same ``out`` share their common runs. table.json records ``command`` for its readers.

    Raises:
        InputError: before the first run, a dataset that does not fit; later the reasons of :func:`make_runs`.
        Interrupted: Ctrl-C or SIGTERM.
    """
    for run in plan.runs[: len(plan.rows)]:
        open_domains(run.data, run.recipe()).classes()
    if plan.left_out:
        print(plan.left_out, flush=True)
    make_runs(plan.runs, out / "runs", jobs=jobs)
    table = collect(plan, out / "runs", command)
    folder = out / plan.study
    make_folder(folder)
    atomic_write(markdown(table), folder / "table.md")
    atomic_write(csv_text(table), folder / "table.csv")
    atomic_write(json.dumps(table.to_dict(), indent=1) + "\n", folder / "table.json")
    predictions_figure(plan, out / "runs", folder / "sheet.png")
    if plan.study in FIGURES:
        FIGURES[plan.study](table, folder / f"{plan.study}.png")
    return table


def make_runs(runs: Sequence[StudyRun], folder: Path, *, jobs: int = 1) -> None:
    """Make every run under ``folder`` that is not complete there, ``jobs`` processes at a time.

    A run that starts from another one waits for it, which is made too.

    Raises:
        InputError: a folder holds another run or is in use, or a run failed. The message ends in the last line of
            its log; the other runs stop with a checkpoint.
        Interrupted: Ctrl-C or SIGTERM; every run in progress has written a checkpoint.
    """
    if jobs < 1:
        raise bad("--jobs", jobs, "at least 1")
    runs = list(dict.fromkeys(each for run in runs for each in (run.start, run) if each))
    todo = [run for run in runs if not is_run_complete(run, folder / run.folder)]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} complete", flush=True)
    active: dict[subprocess.Popen[bytes], StudyRun] = {}

    def next_run() -> StudyRun | None:
        unfinished = {*todo, *active.values()}
        return next((run for run in todo if run.start not in unfinished), None)

    with StopSignal() as stop, _ended(active):
        while True:
            while len(active) < jobs and (run := next_run()) is not None:
                todo.remove(run)
                print(f"{run.folder}: started", flush=True)
                active[_start(run, folder / run.folder)] = run
            if not active:
                return
            time.sleep(0.2)
            if stop.requested:
                raise Interrupted(f"stopped; the same command resumes the runs in {folder}")
            for process in [p for p in active if p.poll() is not None]:
                run = active.pop(process)
                if process.returncode:
                    raise InputError(f"run {folder / run.folder}: {last_line(folder / run.folder / LOG)}")
                print(f"{run.folder}: complete", flush=True)


def is_run_complete(run: StudyRun, run_dir: Path) -> bool:
    """Return whether ``run_dir`` holds ``run`` and it is complete.

    Raises:
        InputError: the folder holds another run.
    """
    if not (run_dir / "run.yaml").is_file():
        return False
    recipe, config = read_run_file(run_dir, RunConfig)
    start = str(run_dir.parent / run.start.folder) if run.start else None
    found = _flat(_identity(recipe, config))
    expected = _flat(
        _identity(run.recipe(), RunConfig(run.data, weights=run.task.weights, start=start, seed=run.seed))
    )
    if found != expected:
        key = next(k for k in {**expected, **found} if found.get(k) != expected.get(k))
        raise bad(
            f"run folder {run_dir}: {key}",
            found.get(key),
            f"{expected.get(key)}: pass another --out, or the settings that it was made with",
        )
    return (run_dir / MODEL_FILE).is_file()


def _identity(recipe: Recipe, config: RunConfig) -> dict[str, Any]:
    """Return everything that a run's scores depend on; the recipe's texts and memory options change no score."""
    plain = recipe.to_dict()
    for key in ("title", "summary", "paper", "published", "memory"):
        del plain[key]
    data = config.data and asdict(config.data.absolute())
    weights, start = (path and existing_path(path) for path in (config.weights, config.start))
    return {**plain, "data": data, "weights": weights, "start": start, "seed": config.seed}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, child in node.items() for k, v in _flat(child, f"{path}.{key}".lstrip(".")).items()}


def _start(run: StudyRun, run_dir: Path) -> subprocess.Popen[bytes]:
    """Start ``udas-fast train`` in a process, with its output in the run's log."""
    make_folder(run_dir)
    command = run.command(str(run_dir))
    if (run_dir / "run.yaml").is_file():
        command = ["udas-fast", "train", "--resume", str(run_dir), "--device", run.task.device]
    with writing(run_dir / LOG):
        log = (run_dir / LOG).open("ab")
    with log:
        lock(log, run_dir)  # held for as long as the run lives, even where the study was killed
        # In a session of its own, so that Ctrl-C in the terminal reaches it once, through the study.
        return subprocess.Popen(
            [sys.executable, "-m", "udas_fast", *command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT | os.environ,
            start_new_session=True,
        )


@contextmanager
def _ended(active: dict[subprocess.Popen[bytes], StudyRun]) -> Iterator[None]:
    """Stop the processes that still run at exit, and wait for their checkpoints."""
    try:
        yield
    finally:
        for process in active:
            process.terminate()
        for process in active:
            process.wait()


def last_line(log: Path) -> str:
    """Return the last line of a log; a progress bar's carriage return ends a line as well."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
    return f"{lines[-1].removeprefix('udas-fast: ') or 'no output'} (the log is {log})"
