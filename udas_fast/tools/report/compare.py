"""Runs side by side as text and as data: final scores, differences to the first, and whether they compare."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udas_fast.errors import bad
from udas_fast.evaluation import Scores, aligned_table
from udas_fast.tools.report.markup import percent
from udas_fast.tools.report.read import Run, read_runs


def compare_runs(paths: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """(text, document for JSON) of the runs in folders ``paths``: scores after each run's last phase.

    IoU and mIoU are in percent in the text and fractions of 1 in the document; differences are to the first run's.

    Raises:
        InputError: fewer than two runs, a folder that :func:`read_runs` refuses, a run without scores, or other
            classes than the first run's.
    """
    if len(paths) < 2:
        raise bad("runs to compare", len(paths), "two or more")
    runs = read_runs(paths)
    finals = {name: _final(name, run) for name, run in runs.items()}
    reference, first = next(iter(finals.items()))
    for name, scores in finals.items():
        if scores.classes != first.classes:
            raise bad(
                f"classes of {name}",
                _listed(scores.classes),
                f"those of {reference}: {_listed(first.classes)}",
            )
    lines = [*_heads(runs), *_scores(finals, first)]
    notes = [*_budgets(runs), *_protocols(finals)]
    return "\n".join([aligned_table(lines), "", *notes]), _document(runs, finals, first)


def _final(name: str, run: Run) -> Scores:
    if run.final is None:
        raise bad(f"run {name}", "no scores", "a run with validation data and a phase that has ended")
    return run.final


def _listed(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} ({', '.join(classes):.60})"


def _heads(runs: dict[str, Run]) -> list[list[str]]:
    """The table's header and what each run is."""
    return [
        ["", *runs],
        ["recipe", *(run.head.recipe.name for run in runs.values())],
        ["scored after", *map(_phase, runs.values())],
        ["steps", *map(_steps, runs.values())],
        ["batch size", *(_plain(_batch_size(run)) for run in runs.values())],
        ["labels", *(_plain(_labels(run)) for run in runs.values())],
        ["seed", *(str(run.head.run.seed) for run in runs.values())],
    ]


def _phase(run: Run) -> str:
    """The one that was scored last."""
    return list(run.scores)[-1]


def _steps(run: Run) -> str:
    done, total = run.steps
    return f"{total:,}" if run.finished else f"{done:,} of {total:,}"


def _batch_size(run: Run) -> int | None:
    return None if run.head.recipe.input is None else run.head.recipe.input.batch_size


def _labels(run: Run) -> int | None:
    return None if run.head.run.data is None else run.head.run.data.num_labels


def _plain(value: int | None) -> str:
    return "–" if value is None else str(value)


def _values(scores: Scores) -> dict[str, float]:
    """Every score by the name of its line."""
    iou = dict(zip(scores.classes, scores.iou.tolist(), strict=True))
    subsets = {f"mIoU {name}": value for name, value in scores.subset_means.items()}
    return iou | {"mIoU": scores.miou} | subsets | {"pixel accuracy": scores.pixel_accuracy}


def _scores(finals: dict[str, Scores], first: Scores) -> list[list[str]]:
    reference = _values(first)
    columns = [_values(scores) for scores in finals.values()]
    lines = []
    for name, base in reference.items():
        others = (_with_difference(column[name], base) for column in columns[1:])
        lines.append([f"{name}, %", percent(base), *others])
    return lines


def _with_difference(value: float, base: float) -> str:
    gap = 100 * (value - base)
    return percent(value) if math.isnan(gap) else f"{percent(value)} ({gap:+.1f})"


def _budgets(runs: dict[str, Run]) -> list[str]:
    """Whether the runs had the same steps and batch size, and which have not come to their end."""
    notes = [
        f"{name} is not finished: its scores are those after {_phase(run)}."
        for name, run in runs.items()
        if not run.finished
    ]
    same = _same_budget(runs)
    return [
        *notes,
        f"Steps and batch size: {'equal' if same else 'they differ, so the budgets are not equal'}.",
    ]


def _same_budget(runs: dict[str, Run]) -> bool:
    return len({(run.steps[1], _batch_size(run)) for run in runs.values()}) == 1


def _protocols(finals: dict[str, Scores]) -> list[str]:
    """The one protocol, or what is otherwise than in the first run's."""
    reference, first = next((name, scores.protocol) for name, scores in finals.items())
    ours = dataclasses.asdict(first)
    notes = []
    for name, scores in finals.items():
        theirs = dataclasses.asdict(scores.protocol)
        gaps = [f"{key} {value} against {ours[key]}" for key, value in theirs.items() if value != ours[key]]
        if gaps:
            found = f"{name} was measured under another protocol than {reference} ({', '.join(gaps)})"
            notes.append(f"{found}: their scores do not compare.")
    return notes or [f"Protocol: {first}"]


def _document(runs: dict[str, Run], finals: dict[str, Scores], first: Scores) -> dict[str, Any]:
    reference = _values(first)
    entries = {}
    for name, run in runs.items():
        values = _values(finals[name])
        entries[name] = {
            "recipe": run.head.recipe.name,
            "seed": run.head.run.seed,
            "labels": _labels(run),
            "finished": run.finished,
            "steps": run.steps[1],
            "batch_size": _batch_size(run),
            "phase": _phase(run),
            "scores": finals[name].to_dict(),
            "difference": {key: _or_none(value - reference[key]) for key, value in values.items()},
        }
    return {
        "same_protocol": len({scores.protocol for scores in finals.values()}) == 1,
        "same_budget": _same_budget(runs),
        "runs": entries,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
