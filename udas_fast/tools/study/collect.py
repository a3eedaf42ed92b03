"""Scores of a study, collected from the scores.json of its runs: the content of table.json."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from udas_fast.config import STRICT
from udas_fast.errors import InputError, bad, first_line
from udas_fast.evaluation import Protocol
from udas_fast.tools.report.read import parse_step
from udas_fast.tools.study.cost import Cost, step_cost
from udas_fast.tools.study.paper import is_synthia
from udas_fast.tools.study.plan import StudyPlan, StudyRun
from udas_fast.tools.study.rows import Study, StudyRow, group_of
from udas_fast.training.environment import environment


@dataclass(frozen=True, config=STRICT)
class Spread:
    """Values by seed in percent, with mean and sample standard deviation."""

    by_seed: list[float | None]  # None: the class does not occur under that seed
    mean: float | None  # None without values
    std: float | None  # None with fewer than two

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Return the spread of ``values``; None is left out of mean and standard deviation."""
        known = [v for v in values if v is not None]
        mean = statistics.mean(known) if known else None
        return cls(list(values), mean, statistics.stdev(known) if len(known) > 1 else None)

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")


@dataclass(frozen=True, config=STRICT)
class RowScores:
    """Scores of a row after its last phase."""

    name: str
    recipe: str
    labels: int
    translated: bool | None
    settings: list[str]
    miou: Spread
    iou: dict[str, Spread]  # by class
    phases: list[dict[str, float | None]]  # mIoU after each phase, by seed
    commands: list[str]  # by seed
    pixel_accuracy: Spread | None = None
    subset_means: dict[str, Spread] = field(
        default_factory=dict
    )  # SYNTHIA's 16 and 13 classes, with its source
    group: str = ""  # in the methods study
    cost: Cost | None = None  # in the methods study
    step_seconds: list[float] = field(default_factory=list)  # median of a run's steps, by seed

    @property
    def method(self) -> str:
        """Name without the number of labels."""
        return self.name.removesuffix(f", {self.labels} labels")


@dataclass(frozen=True, config=STRICT)
class StudyTable:
    """Content of ``table.json``: everything that the tables show, and what is needed to judge and repeat them."""

    study: Study
    command: str
    source: str
    target: str
    translate: str
    steps: int | None  # of the network that is scored; None: each recipe's own number
    seeds: list[int]
    environment: dict[str, Any]
    protocol: dict[str, Any]
    rows: list[RowScores]
    left_out: str = ""  # a row that readers may expect, and why it is missing

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def from_dict(content: dict[str, Any]) -> StudyTable:
        """Return the table that :meth:`to_dict` wrote; raises pydantic's ValidationError for anything else."""
        return _ADAPTER.validate_python(content)


_ADAPTER: TypeAdapter[StudyTable] = TypeAdapter(StudyTable)
_PROTOCOL: TypeAdapter[Protocol] = TypeAdapter(Protocol)


def collect(plan: StudyPlan, folder: Path, command: str) -> StudyTable:
    """Read the scores of every run of ``plan`` under ``folder``; ``command`` is recorded in the table.

    Raises:
        InputError: a run has no scores, they are damaged, or they were measured under different protocols.
    """
    rows = [_row(plan, row, folder) for row in plan.rows]
    protocols = _protocols(plan, folder)
    if len(protocols) > 1:
        raise bad(
            f"runs in {folder}",
            f"{len(protocols)} protocols: {' and '.join(map(json.dumps, protocols))}",
            "one",
        )
    return StudyTable(
        study=plan.study,
        command=command,
        source=plan.task.source,
        target=plan.task.target,
        translate=plan.task.translate,
        steps=plan.steps,
        seeds=list(dict.fromkeys(run.seed for run in plan.runs)),
        environment=_environment([folder / run.folder for run in plan.runs]),
        protocol=protocols[0],
        rows=rows,
        left_out=plan.left_out,
    )


def with_costs(table: StudyTable, plan: StudyPlan) -> StudyTable:
    """Return the ``table`` of ``plan`` with the cost of each row's recipe, which takes seconds for each."""
    runs = {run.row: run for run in plan.runs}
    costs = [
        step_cost(runs[row].recipe(), len(scores.iou), labelled=row.num_labels > 0)
        for row, scores in zip(plan.rows, table.rows, strict=True)
    ]
    rows = [replace(scores, cost=cost) for scores, cost in zip(table.rows, costs, strict=True)]
    return replace(table, rows=rows)


def _protocols(plan: StudyPlan, folder: Path) -> list[dict[str, Any]]:
    """Return the different protocols of the rows that are scored on the target; ``sizes`` has one for each size."""
    found: list[dict[str, Any]] = []
    for run in plan.runs:
        if run.row.scored_on is None:
            protocol = _protocol(run, folder)
            if any(
                row.target for row in plan.rows
            ):  # and runs that have seen no target image are another one's
                protocol = {**protocol, "dataset": plan.task.target.partition(":")[0]}
            if plan.study == "sizes":
                protocol = {**protocol, "input_size": None}
            if protocol not in found:
                found.append(protocol)
    return found


def _protocol(run: StudyRun, folder: Path) -> dict[str, Any]:
    """Return the protocol of a run's last scores, with the defaults of what its file lacks."""
    try:
        return _PROTOCOL.dump_python(Protocol(**_last(_scores(run, folder))["protocol"]), mode="json")
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{folder / run.folder / run.scores_file}: damaged ({first_line(error)})") from error


def _row(plan: StudyPlan, row: StudyRow, folder: Path) -> RowScores:
    runs = [run for run in plan.runs if run.row == row]
    of_row = [_scores(run, folder) for run in runs]
    last = [_last(p) for p in of_row]
    return RowScores(
        name=row.title,
        recipe=row.recipe,
        labels=row.num_labels,
        translated=row.translated,
        settings=list(runs[0].settings),
        miou=Spread.of([_percent(s["miou"]) for s in last]),
        iou={name: Spread.of([_percent(s["iou"][name]) for s in last]) for name in last[0]["iou"]},
        phases=[{name: _percent(s["miou"]) for name, s in p.items()} for p in of_row],
        commands=[shlex.join(run.command(f"runs/{run.folder}")) for run in runs],
        pixel_accuracy=Spread.of([_percent(s["pixel_accuracy"]) for s in last]),
        subset_means={
            name: Spread.of([_percent(s["subset_means"][name]) for s in last])
            for name in (last[0]["subset_means"] if is_synthia(plan.task.source, plan.task.target) else ())
        },
        group=group_of(row.own_recipe, row.num_labels) if plan.study == "methods" else "",
        step_seconds=[seconds for run in runs for seconds in step_seconds(folder / run.folder)],
    )


def step_seconds(run: Path) -> list[float]:
    """Return the median seconds of a step of ``run``, nothing where it has recorded no times."""
    path = run / "timing.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith(b"\n"):  # as a killed run leaves it
        del lines[-1]
    steps = [parse_step(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]
    found = [step.values["seconds"] for step in steps if "seconds" in step.values]
    return [statistics.median(found)] if found else []


def _scores(run: StudyRun, folder: Path) -> dict[str, Any]:
    """Return the scores of a run by phase, on its row's own dataset of the last one alone."""
    path = folder / run.folder / run.scores_file
    return _phases(path) if run.row.scored_on is None else {"": _read(path)}


def _last(phases: dict[str, Any]) -> dict[str, Any]:
    return list(phases.values())[-1]


def _phases(path: Path) -> dict[str, Any]:
    try:
        return _read(path)["phases"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error


def _environment(runs: Sequence[Path]) -> dict[str, Any]:
    """Return the environment that the runs recorded, "A and B" where they differ; this machine's for older runs."""
    paths = [path for run in runs if (path := run / "environment.json").is_file()]
    found = [_read(path) for path in paths] or [environment()]
    return {key: _joined([each.get(key) for each in found]) for key in found[0]}


def _joined(values: Sequence[object]) -> object:
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    return different[0] if len(different) == 1 else " and ".join(map(str, different))


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
