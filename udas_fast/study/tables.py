"""A study's tables: rows × classes as in UDAS 4.3.1, methods × labels as in 4.3.2; Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from udas_fast.evaluation import Protocol
from udas_fast.study import paper
from udas_fast.study.results import RowResult, Spread, StudyResult

NAMES = {"supervised": "Supervised", "udas": "UDAS"}


def markdown(result: StudyResult, command: str) -> str:
    """``table.md``: the labels study's own table first, then a line of IoU by class for each row."""
    tables = [class_table(result)]
    if result.plan.study == "labels":
        tables.insert(0, labels_table(result))
    seeds = ", ".join(map(str, result.seeds))
    spread = "mean ± standard deviation over seeds" if len(result.seeds) > 1 else "seed"
    notes = (
        f"{result.plan.task.source} → {result.plan.task.target}, {result.plan.steps} steps in every row, "
        f"{spread} {seeds}, in percent. Protocol: {Protocol(**result.protocol)}. `{command}`"
    )
    if any(row.row.recipe == "udas" and row.row.labels for row in result.rows):
        notes += "\n\nRows with labels train on that many labelled target images."
    return "\n\n".join([*tables, notes]) + "\n"


def class_table(result: StudyResult) -> str:
    """IoU by class and mIoU; on the paper's task with the paper's line below each of its rows."""
    known = paper.is_paper_task(result.plan.task.source, result.plan.task.target)
    lines = []
    for row in result.rows:
        lines.append([row.row.title, *row.by_class().values(), f"**{row.mean}**"])
        if known and (published := _published(row)) is not None:
            iou, miou = published
            lines.append([f"*{_paper_name(row)}, UDAS paper*", *(f"{v:.1f}" for v in iou), f"{miou:.1f}"])
    return pipe_table(["Model", *result.classes, "mIoU"], lines)


def _paper_name(row: RowResult) -> str:
    return row.row.title.partition(",")[0]


def _published(row: RowResult) -> tuple[tuple[float, ...], float] | None:
    """The paper trains its last row with labels: it has nothing to set beside ours without."""
    if row.row.recipe == "udas" and not row.row.labels:
        return None
    return paper.ABLATION.get(_paper_name(row))


def labels_table(result: StudyResult) -> str:
    """mIoU of both methods by number of labelled target images, most first, and UDAS − Supervised by seed."""
    rows = {(r.row.recipe, r.row.labels): r for r in result.rows}
    counts = sorted({r.row.labels for r in result.rows}, reverse=True)
    lines = [
        [NAMES[recipe], *(rows[recipe, n].mean if (recipe, n) in rows else "–" for n in counts)]
        for recipe in NAMES
    ]
    lines.append(["UDAS − Supervised", *(_signed(gap) for gap in gaps(result).values())])
    if paper.is_paper_task(result.plan.task.source, result.plan.task.target):
        for recipe, name in NAMES.items():
            cells = (paper.LABELS[recipe].get(n) for n in counts)
            lines.append([f"*{name}, UDAS paper*", *("–" if v is None else f"{v:.1f}" for v in cells)])
    return pipe_table(["Labelled target images", *map(str, counts)], lines)


def gaps(result: StudyResult) -> dict[int, Spread]:
    """UDAS − Supervised by number of labels, most first: the spread of the differences at one seed."""
    rows = {(r.row.recipe, r.row.labels): r.miou for r in result.rows}
    counts = sorted({r.row.labels for r in result.rows}, reverse=True)
    return {
        n: Spread.of(
            [ours - theirs for ours, theirs in zip(rows["udas", n], rows["supervised", n], strict=True)]
            if n
            else []
        )
        for n in counts
    }


def _signed(gap: Spread) -> str:
    return f"+{gap}" if gap.mean is not None and gap.mean >= 0 else str(gap)


def pipe_table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, rule, *lines))


def csv_text(result: StudyResult) -> str:
    """``table.csv``: a line for each row and seed, then each row's mean and standard deviation, in percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "recipe", "labels", "seed", *result.classes, "mIoU"])
    for row in result.rows:
        start: list[Any] = [row.row.title, row.row.recipe, row.row.labels]
        for i, run in enumerate(row.runs):
            writer.writerow([*start, run.seed, *(v[i] for v in row.iou.values()), row.miou[i]])
        spreads = [*row.by_class().values(), row.mean]
        writer.writerow([*start, "mean", *(s.mean for s in spreads)])
        writer.writerow([*start, "std", *(s.std for s in spreads)])
    return out.getvalue()
