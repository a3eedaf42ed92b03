"""What the runs of a plan scored, read from their scores.json alone."""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from udas_fast.data import open_dataset, subset
from udas_fast.doctor import environment
from udas_fast.errors import InputError, bad
from udas_fast.study.plan import Plan, Row, Run


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the seeds, in the unit of the values; None without values."""

    mean: float | None
    std: float | None  # None with fewer than two values

    @classmethod
    def of(cls, values: list[float | None]) -> Spread:
        """``values`` by seed; a class that does not occur under a seed has None and is left out."""
        known = [v for v in values if v is not None]
        return cls(
            statistics.mean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None
        )

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")


@dataclass(frozen=True)
class RowResult:
    """The scores of a row after its last phase, in percent, in the order of the seeds."""

    row: Row
    runs: list[Run]
    miou: list[float]
    iou: dict[str, list[float | None]]  # by class
    phases: list[dict[str, float]]  # mIoU after each phase, by seed

    @property
    def mean(self) -> Spread:
        """mIoU over the seeds."""
        return Spread.of(self.miou)

    def by_class(self) -> dict[str, Spread]:
        """IoU over the seeds."""
        return {name: Spread.of(values) for name, values in self.iou.items()}


@dataclass(frozen=True)
class StudyResult:
    """All rows of a study, measured under one protocol."""

    plan: Plan
    rows: list[RowResult]
    classes: list[str]
    protocol: dict[str, Any]

    @property
    def seeds(self) -> list[int]:
        """In the order in which they were asked for."""
        return list(dict.fromkeys(run.seed for run in self.plan.runs))


def collect(plan: Plan, folder: Path) -> StudyResult:
    """Read the scores of every run of ``plan`` under ``folder``.

    Raises:
        InputError: a run has no scores, they are damaged, or they were measured in different ways.
    """
    rows, protocols = [], {}
    for row in plan.rows:
        runs = [run for run in plan.runs if run.row == row]
        phases = [_phases(folder / run.folder / "scores.json") for run in runs]
        last = [list(p.values())[-1] for p in phases]
        protocols |= {json.dumps(s["protocol"]): s["protocol"] for s in last}
        iou = {name: [_percent(s["iou"][name]) for s in last] for name in last[0]["iou"]}
        by_phase = [{name: _percent(s["miou"]) for name, s in p.items()} for p in phases]
        rows.append(RowResult(row, runs, [_percent(s["miou"]) for s in last], iou, by_phase))
    if len(protocols) > 1:
        raise bad(f"runs in {folder}", f"{len(protocols)} protocols: {' and '.join(protocols)}", "one")
    return StudyResult(plan, rows, list(rows[0].iou), next(iter(protocols.values())))


def _phases(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["phases"]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{path}: damaged ({error})") from error


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def document(result: StudyResult, command: str) -> dict[str, Any]:
    """``table.json``: everything that the tables show and what it takes to judge and repeat them."""
    plan = result.plan
    return {
        "study": plan.study,
        "command": command,
        "source": plan.task.source,
        "target": plan.task.target,
        "translate": plan.task.translate,
        "steps": plan.steps,
        "seeds": result.seeds,
        "environment": environment(),
        "protocol": result.protocol,
        "classes": result.classes,
        "labelled_ids": labelled_ids(plan),
        "rows": [
            {
                "name": r.row.title,
                "recipe": r.row.recipe,
                "labels": r.row.labels,
                "translated": r.row.translated,
                "settings": list(r.runs[0].settings),
                "miou": {"by_seed": r.miou, **asdict(r.mean)},
                "iou": {
                    name: {"by_seed": r.iou[name], **asdict(spread)} for name, spread in r.by_class().items()
                },
                "phases": r.phases,
                "commands": [shlex.join(run.command(f"runs/{run.folder}")) for run in r.runs],
            }
            for r in result.rows
        ],
    }


def labelled_ids(plan: Plan) -> dict[str, list[str]]:
    """The ids of the labelled target images, by their number; each list holds the shorter ones."""
    counts = sorted({row.labels for row in plan.rows if row.labels})
    if not counts:
        return {}
    pool = open_dataset(plan.task.target, "train", size=(8, 8))
    return {str(n): [pool.unlabelled(i).id for i in subset(pool, n).indices] for n in counts}
