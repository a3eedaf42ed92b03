"""Comparison of runs as text and as data: final scores, differences to the first run, and fairness."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udas_fast.errors import bad
from udas_fast.evaluation import Scores, aligned_table, mean_notes
from udas_fast.tools.report.markup import percent
from udas_fast.tools.report.read import RunRecord, read_runs


def compare_runs(run_dirs: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """Compare the scores of runs after their last phases; return a text and a document for JSON.

    IoU and mIoU are in percent in the text and fractions of 1 in the document. Differences are to the first run.

    Raises:
        InputError: fewer than two runs, a folder that :func:`read_runs` refuses, a run without scores, or classes
            that differ from the first run's.
    """
    if len(run_dirs) < 2:
        raise bad("runs to compare", len(run_dirs), "two or more")
    runs = read_runs(run_dirs)
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
    notes = [*_budgets(runs), *mean_notes(finals), *_protocols(finals)]
    return "\n".join([aligned_table(lines), "", *notes]), _document(runs, finals, first)


def _final(name: str, run: RunRecord) -> Scores:
    if run.final is None:
        raise bad(f"run {name}", "no scores", "a run with validation data and a phase that has ended")
    return run.final


def _listed(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} ({', '.join(classes):.60})"


def _heads(runs: dict[str, RunRecord]) -> list[list[str]]:
    """Return the table's header and the lines that describe the runs."""
    return [
        ["", *runs],
        ["recipe", *(run.recipe.name for run in runs.values())],
        ["scored after", *map(_phase, runs.values())],
        ["steps", *map(_steps, runs.values())],
        ["batch size", *(_batch_size(run) for run in runs.values())],
        ["labels", *(_plain(run.config.num_labels) for run in runs.values())],
        ["seed", *(str(run.config.seed) for run in runs.values())],
    ]


def _phase(run: RunRecord) -> str:
    """Return the name of the phase that was scored last."""
    return list(run.scores)[-1]


def _steps(run: RunRecord) -> str:
    total = f"{run.recipe.steps:,}"
    return total if run.finished else f"{run.recorded_steps:,} of {total}"


def _batch_size(run: RunRecord) -> str:
    """Return the batch size, with those of streams that differ: "4 (unlabelled 8)"."""
    inputs = run.recipe.input
    if inputs is None:
        return _plain(None)
    streams = ", ".join(f"{name} {size}" for name, size in inputs.stream_batch_size.items() if size)
    return f"{inputs.batch_size} ({streams})" if streams else str(inputs.batch_size)


def _plain(value: int | None) -> str:
    return "–" if value is None else str(value)


def _values(scores: Scores) -> dict[str, float]:
    """Return every score by the name of its line."""
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
    gap = round(100 * (value - base), 1) + 0.0  # not -0.0
    return percent(value) if math.isnan(gap) else f"{percent(value)} ({gap:+.1f})"


def _budgets(runs: dict[str, RunRecord]) -> list[str]:
    """Return sentences about unfinished runs and about equal steps and batch sizes."""
    notes = [
        f"{name} is not finished; its scores are from the end of {_phase(run)}."
        for name, run in runs.items()
        if not run.finished
    ]
    verdict = (
        "The runs have the same number of steps and the same batch size."
        if _same_budget(runs)
        else "The runs differ in steps or batch size, so their budgets are not equal."
    )
    return [*notes, verdict]


def _same_budget(runs: dict[str, RunRecord]) -> bool:
    return len({(run.recipe.steps, _batch_size(run)) for run in runs.values()}) == 1


def _protocols(finals: dict[str, Scores]) -> list[str]:
    """Return the common protocol, or how the others differ from the first run's."""
    reference, first = next((name, scores.protocol) for name, scores in finals.items())
    expected = dataclasses.asdict(first)
    notes = []
    for name, scores in finals.items():
        found = dataclasses.asdict(scores.protocol)
        gaps = [
            f"{key} {value} against {expected[key]}" for key, value in found.items() if value != expected[key]
        ]
        if gaps:
            notes.append(
                f"{name} was measured under a different protocol from {reference} ({', '.join(gaps)}): "
                "their scores cannot be compared."
            )
    return notes or [f"Protocol: {first}"]


def _document(runs: dict[str, RunRecord], finals: dict[str, Scores], first: Scores) -> dict[str, Any]:
    reference = _values(first)
    entries = {}
    for name, run in runs.items():
        values = _values(finals[name])
        entries[name] = {
            "recipe": run.recipe.name,
            "seed": run.config.seed,
            "labels": run.config.num_labels,
            "finished": run.finished,
            "steps": run.recipe.steps,
            "batch_size": None if run.recipe.input is None else run.recipe.input.batch_size,
            "stream_batch_size": {} if run.recipe.input is None else run.recipe.input.stream_batch_size,
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
