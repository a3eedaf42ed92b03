"""Tables of scores in aligned Markdown, readable in terminals and files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from udas_fast.data import ClassSet
from udas_fast.errors import bad
from udas_fast.evaluation.metrics import Scores


def scores_table(rows: Mapping[str, Scores], classes: ClassSet) -> str:
    """Format per-class IoU, means and pixel accuracy in percent: a line per class, a column per entry of ``rows``.

    Aligned Markdown with the classes in the mean and the protocol below; "–" stands for a class that does not occur.

    Raises:
        InputError: no rows, or scores of other classes.
    """
    return "\n".join([aligned_table(_cells(rows, classes)), "", *mean_notes(rows), *_protocols(rows)])


def mean_notes(rows: Mapping[str, Scores]) -> list[str]:
    """Return which classes each mIoU is a mean over: one line if it is the same for all, else a line for each."""
    notes = {name: scores.mean_note for name, scores in rows.items()}
    if len(set(notes.values())) == 1:
        return [f"mIoU: {next(iter(notes.values()))}"]
    return [f"mIoU of {name}: {note}" for name, note in notes.items()]


def aligned_table(lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with padded columns, the first one left-aligned; ``lines[0]`` is the header."""
    header, *body = lines
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = []
    for first, *others in (header, rule, *body):
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cells(rows: Mapping[str, Scores], classes: ClassSet) -> list[list[str]]:
    """Return the header, a line per class, the means and the accuracy."""
    if not rows:
        raise bad("scores table", "no scores", "at least one")
    for name, scores in rows.items():
        if scores.classes != classes.names:
            raise bad(f"scores of {name}", f"classes {', '.join(scores.classes)}", f"those of {classes.name}")
    table = [["IoU, %", *rows]]
    columns = [scores.iou.tolist() for scores in rows.values()]
    for name, *values in zip(classes.names, *columns, strict=True):
        table.append([name, *map(_percent, values)])
    all_scores = list(rows.values())
    table.append(["mIoU", *(_percent(s.miou) for s in all_scores)])
    for name in all_scores[0].subset_means:
        table.append([f"mIoU {name}", *(_percent(s.subset_means[name]) for s in all_scores)])
    table.append(["mean accuracy", *(_percent(s.accuracy_mean) for s in all_scores)])
    table.append(["mean F1", *(_percent(s.f1_mean) for s in all_scores)])
    table.append(["pixel accuracy", *(_percent(s.pixel_accuracy) for s in all_scores)])
    if any(s.reliability is not None for s in all_scores):
        table.append(["calibration error", *(_percent(s.ece) for s in all_scores)])
    return table


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _protocols(rows: Mapping[str, Scores]) -> list[str]:
    """Return one line if all scores share a protocol, else a line for each."""
    if len({scores.protocol for scores in rows.values()}) == 1:
        return [f"Protocol: {next(iter(rows.values())).protocol}"]
    return [f"Protocol of {name}: {scores.protocol}" for name, scores in rows.items()]
