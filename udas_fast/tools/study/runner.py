"""Makes the runs of a plan: skips what is complete, goes on with what was cut short, several side by side."""

from __future__ import annotations

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

from udas_fast.atomic import make_folder, writing
from udas_fast.data.domains import DataConfig
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.errors import InputError, bad
from udas_fast.inference import MODEL_FILE
from udas_fast.recipes import Recipe
from udas_fast.tools.study.plan import Run
from udas_fast.training.run_folder import RunConfig, lock, read_run_file

LOG = "train.log"
# One thread a run: several run side by side, and threads that wait for each other slow all of them down.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def make_runs(runs: Sequence[Run], folder: Path, *, jobs: int = 1) -> None:
    """Make every run under ``folder`` that is not complete there, ``jobs`` processes at a time.

    Raises:
        InputError: a folder holds another run or is in use, or a run failed; its last line is told, the
            others stop with a checkpoint.
        Interrupted: Ctrl-C or SIGTERM; every run that was under way has written a checkpoint.
    """
    if jobs < 1:
        raise bad("--jobs", jobs, "at least 1")
    todo = [run for run in runs if not is_complete(run, folder / run.folder)]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} complete", flush=True)
    waiting, active = iter(todo), {}
    with StopSignal() as stop, _ended(active):
        while True:
            while len(active) < jobs and (run := next(waiting, None)) is not None:
                print(f"{run.folder}: started", flush=True)
                active[_start(run, folder / run.folder)] = run
            if not active:
                return
            time.sleep(0.2)
            if stop.requested:
                raise Interrupted(f"stopped; the same command goes on with the runs in {folder}")
            for process in [p for p in active if p.poll() is not None]:
                run = active.pop(process)
                if process.returncode:
                    raise InputError(f"run {folder / run.folder}: {last_line(folder / run.folder / LOG)}")
                print(f"{run.folder}: complete", flush=True)


def is_complete(run: Run, folder: Path) -> bool:
    """Whether ``folder`` holds ``run`` to its end.

    Raises:
        InputError: it holds another run.
    """
    if not (folder / "run.yaml").is_file():
        return False
    recipe, config = read_run_file(folder, RunConfig)
    found = _identity(recipe, config.data, config.weights, config.seed)
    expected = _identity(run.recipe(), run.data, run.task.weights, run.seed)
    if found != expected:
        there, asked = _flat(found), _flat(expected)
        key = next(k for k in {**asked, **there} if there.get(k) != asked.get(k))
        raise bad(
            f"run folder {folder}: {key}",
            there.get(key),
            f"{asked.get(key)}: give another --out, or the settings that it was made with",
        )
    return (folder / MODEL_FILE).is_file()


def _identity(recipe: Recipe, data: DataConfig | None, weights: str | None, seed: int) -> dict[str, Any]:
    """What makes a run the run that it is; a recipe's texts and the memory that it takes change no score."""
    plain = recipe.to_dict()
    for key in ("summary", "paper", "published", "memory"):
        del plain[key]
    return {**plain, "data": data and asdict(data), "weights": weights, "seed": seed}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, child in node.items() for k, v in _flat(child, f"{path}.{key}".lstrip(".")).items()}


def _start(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """``udas-fast train`` in a process, its output in the run's log."""
    make_folder(folder)
    command = run.command(str(folder))
    if (folder / "run.yaml").is_file():
        command = ["udas-fast", "train", "--resume", str(folder), "--device", run.task.device]
    with writing(folder / LOG):
        log = (folder / LOG).open("ab")
    with log:
        lock(log, folder)  # for as long as the run lives, even where the study that started it was killed
        # A session of its own: of a Ctrl-C in the terminal it hears once, through us.
        return subprocess.Popen(
            [sys.executable, "-m", "udas_fast", *command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT | os.environ,
            start_new_session=True,
        )


@contextmanager
def _ended(active: dict[subprocess.Popen[bytes], Run]) -> Iterator[None]:
    """On the way out ask what still runs to stop, and wait for its checkpoint."""
    try:
        yield
    finally:
        for process in active:
            process.terminate()
        for process in active:
            process.wait()


def last_line(log: Path) -> str:
    """The last line of a log; a progress bar's carriage return ends a line as well."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
    return f"{lines[-1].removeprefix('udas-fast: ') or 'no output'} (all of it in {log})"
