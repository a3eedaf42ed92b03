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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from udas_fast.atomic import atomic_write, make_folder, writing
from udas_fast.data.identity import existing_path
from udas_fast.data.translated import read_manifest
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.errors import InputError, bad
from udas_fast.inference import MODEL_FILE
from udas_fast.models import build_model
from udas_fast.recipes import Recipe
from udas_fast.tools.study.collect import StudyTable, collect, with_costs
from udas_fast.tools.study.figures import (
    labels_figure,
    methods_figure,
    mixed_images_figure,
    predictions_figure,
)
from udas_fast.tools.study.plan import StudyPlan, StudyRun, TranslationRun
from udas_fast.tools.study.tables import csv_text, markdown
from udas_fast.training.networks import check_stage
from udas_fast.training.requirements import check_batch_sizes, open_domains
from udas_fast.training.run_folder import RunConfig, lock, read_run_file
from udas_fast.training.translation import TranslationConfig

LOG = "train.log"
POLL = 0.2  # seconds
# glibc keeps the memory of a step for the next one, in huge pages: a step on a CPU takes about a fifth less time.
KEEP_MEMORY = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
)
# One thread per run: several run at the same time, and threads that wait for each other slow all of them down.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "GLIBC_TUNABLES": KEEP_MEMORY}
NO_SCORE = ("title", "summary", "paper", "published", "memory")  # parts of a recipe that change no score
WITHOUT_SHEET = ("sizes", "gap")
FIGURES = {"labels": labels_figure, "methods": methods_figure}


def run_studies(plans: Sequence[StudyPlan], out: Path, *, command: str, jobs: int = 1) -> list[StudyTable]:
    """Make the missing runs of ``plans``, which have one task, under ``out/runs``, then write ``out/STUDY/`` of each.

    The latter holds table.md, table.csv, table.json and sheet.png, mixed.png where a row has Domain CutMix and labelled
    target images, and labels.png or methods.png for these studies; there is no sheet of rows that are of several sizes
    or domains. Studies with the same ``out`` share their common
    runs. Each table.json records ``command`` for its readers.

    Raises:
        InputError: before the first run, a dataset that does not fit; later the reasons of :func:`make_runs`.
        Interrupted: Ctrl-C or SIGTERM.
    """
    check_rows(plans)
    for plan in plans:
        if plan.left_out:
            print(f"{plan.study}: {plan.left_out}", flush=True)
    if plans[0].task.makes_translation:
        make_translation(TranslationRun(plans[0].task))
    runs = [run for plan in plans for run in plan.runs]
    make_runs(runs, out / "runs", jobs=jobs)
    score_runs(runs, out / "runs")
    return [write_tables(plan, out, command) for plan in plans]


def check_rows(plans: Sequence[StudyPlan]) -> None:
    """Open the datasets of every row and look at its network.

    Raises:
        InputError: a dataset is missing or does not fit, or a method cannot use its batches or the row's network.
    """
    for plan in plans:
        task = plan.task
        for run in plan.runs[: len(plan.rows)]:
            data = run.data
            if task.makes_translation and data.source == task.translate:
                data = replace(data, source=task.source)  # whose images are not translated yet
            recipe = run.recipe()
            domains = open_domains(data, recipe)
            try:
                check_batch_sizes(recipe, domains)
            except InputError as error:
                raise InputError(f"row {run.row.title}: {error}") from error
            _check_network(run, recipe, len(domains.classes()))


def _check_network(run: StudyRun, recipe: Recipe, num_classes: int) -> None:
    with torch.device("meta"):
        network = build_model(recipe.model, num_classes)
    random = not (run.task.weights or recipe.model.hf or run.start)
    for stage in recipe.stages:
        if stage.model is None:
            try:
                check_stage(stage, network, random=random)
            except InputError as error:
                setting = f"for this row alone `--set {recipe.name}:KEY=VALUE`"
                raise InputError(f"row {run.row.title}: {error}; {setting}") from error


def write_tables(plan: StudyPlan, out: Path, command: str) -> StudyTable:
    """Write the tables and figures of ``plan``, whose runs are complete, to ``out/STUDY/``."""
    table = collect(plan, out / "runs", command)
    if plan.study == "methods":
        table = with_costs(table, plan)
    folder = out / plan.study
    make_folder(folder)
    atomic_write(markdown(table), folder / "table.md")
    atomic_write(csv_text(table), folder / "table.csv")
    atomic_write(json.dumps(table.to_dict(), indent=1) + "\n", folder / "table.json")
    if plan.study not in WITHOUT_SHEET:
        predictions_figure(plan, out / "runs", folder / "sheet.png")
        mixed_images_figure(plan, out / "runs", folder / "mixed.png")
    if plan.study in FIGURES:
        FIGURES[plan.study](table, folder / f"{plan.study}.png")
    return table


@dataclass(frozen=True)
class _Job:
    """A command of a study, the folder of its log, and the job that has to be complete before."""

    name: str
    folder: Path
    command: Sequence[str]
    after: str | None = None


def make_translation(run: TranslationRun) -> None:
    """Train CycleGAN and translate the source; nothing happens where all images are there.

    Raises:
        InputError: the folder holds another translation or is in use, or the command failed.
        Interrupted: Ctrl-C or SIGTERM; the translation has written a checkpoint.
    """
    if is_translation_complete(run):
        print(f"{run.folder}: complete", flush=True)
        return
    command = run.command()
    if (run.folder / "run.yaml").is_file():
        command = ["udas-fast", "translate", "--resume", str(run.folder), "--device", run.task.device]
    _run_jobs([_Job(str(run.folder), run.folder, command)])


def is_translation_complete(run: TranslationRun) -> bool:
    """Return whether the folder of ``run`` holds it and all images are written.

    Raises:
        InputError: the folder holds another run.
    """
    if not (run.folder / "run.yaml").is_file():
        return False
    recipe, config = read_run_file(run.folder, TranslationConfig)
    # Sizes and crops are those of the images.
    found, expected = (
        {"stages": of.to_dict()["stages"], **asdict(data.absolute())}
        for of, data in ((recipe, replace(config.data, engine="auto")), (run.recipe(), run.data))
    )
    _require_same(run.folder, found, expected)
    manifest = read_manifest(run.folder)
    return manifest is not None and not manifest.missing


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
    all_runs = distinct(runs)
    todo = [run for run in all_runs if not is_run_complete(run, folder / run.folder)]
    print(f"{len(all_runs)} runs, {len(all_runs) - len(todo)} complete", flush=True)
    _run_jobs([_training(run, folder) for run in todo], at_once=jobs)


def distinct(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Return each of ``runs`` once, and before it the one that it starts from."""
    found: dict[str, StudyRun] = {}
    for run in runs:
        for each in (run.start, run):
            if each is not None:
                found.setdefault(each.folder, each)
    return list(found.values())


def _training(run: StudyRun, folder: Path) -> _Job:
    run_dir = folder / run.folder
    command = run.command(str(run_dir))
    if (run_dir / "run.yaml").is_file():
        command = ["udas-fast", "train", "--resume", str(run_dir), "--device", run.task.device]
    return _Job(run.folder, run_dir, command, run.start.folder if run.start else None)


def score_runs(runs: Sequence[StudyRun], folder: Path) -> None:
    """Score the runs of rows that have a dataset of their own on that, where it has not been done.

    Raises:
        InputError: a dataset that does not fit.
    """
    todo = {
        f"{run.folder}/{run.scores_file}": run
        for run in runs
        if run.row.scored_on and not (folder / run.folder / run.scores_file).is_file()
    }
    _run_jobs(
        [
            _Job(name, folder / run.folder, run.score_command(str(folder / run.folder)))
            for name, run in todo.items()
        ]
    )


def _run_jobs(jobs: Sequence[_Job], *, at_once: int = 1) -> None:
    """Run commands in their order, ``at_once`` of them side by side; errors are those of :func:`make_runs`."""
    todo = list(jobs)
    active: dict[subprocess.Popen[bytes], _Job] = {}

    def next_job() -> _Job | None:
        unfinished = {job.name for job in (*todo, *active.values())}
        return next((job for job in todo if job.after not in unfinished), None)

    with StopSignal() as stop, _ended(active):
        while True:
            while len(active) < at_once and (job := next_job()) is not None:
                todo.remove(job)
                print(f"{job.name}: started", flush=True)
                active[_start(job)] = job
            if not active:
                return
            time.sleep(POLL)
            if stop.requested:
                raise Interrupted("stopped; the same command resumes the runs")
            for process in [p for p in active if p.poll() is not None]:
                job = active.pop(process)
                if process.returncode:
                    raise InputError(f"run {job.folder}: {last_line(job.folder / LOG)}")
                print(f"{job.name}: complete", flush=True)


def is_run_complete(run: StudyRun, run_dir: Path) -> bool:
    """Return whether ``run_dir`` holds ``run`` and it is complete.

    Raises:
        InputError: the folder holds another run.
    """
    if not (run_dir / "run.yaml").is_file():
        return False
    recipe, config = read_run_file(run_dir, RunConfig)
    start = str(run_dir.parent / run.start.folder) if run.start else None
    planned = RunConfig(run.data, weights=run.task.weights, start=start, seed=run.seed)
    _require_same(run_dir, _identity(recipe, config), _identity(run.recipe(), planned))
    return (run_dir / MODEL_FILE).is_file()


def _require_same(run_dir: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    found, expected = _flat(found), _flat(expected)
    if found != expected:
        key = next(k for k in {**expected, **found} if found.get(k) != expected.get(k))
        raise bad(
            f"run folder {run_dir}: {key}",
            found.get(key),
            f"{expected.get(key)}: pass another --out, or the settings that it was made with",
        )


def _identity(recipe: Recipe, config: RunConfig) -> dict[str, Any]:
    """Return everything that a run's scores depend on."""
    plain = {key: value for key, value in recipe.to_dict().items() if key not in NO_SCORE}
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


def _start(job: _Job) -> subprocess.Popen[bytes]:
    """Start a ``udas-fast`` command in a process, with its output in the log of its run."""
    make_folder(job.folder)
    with writing(job.folder / LOG):
        log = (job.folder / LOG).open("ab")
    with log:
        lock(log, job.folder)  # held for as long as the run lives, even where the study was killed
        # In a session of its own, so that Ctrl-C in the terminal reaches it once, through the study.
        return subprocess.Popen(
            [sys.executable, "-m", "udas_fast", *job.command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT | os.environ,
            start_new_session=True,
        )


@contextmanager
def _ended(active: dict[subprocess.Popen[bytes], _Job]) -> Iterator[None]:
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
