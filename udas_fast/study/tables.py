"""A study's tables: rows × classes as in UDAS 4.3.1, methods × labels as in 4.3.2; Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from udas_fast.evaluation import Protocol
from udas_fast.study import paper
from udas_fast.study.results import RowScores, Spread, StudyTable

NAMES = {"supervised": "Supervised", "udas": "UDAS"}


def markdown(table: StudyTable) -> str:
    """``table.md``: the labels study's own table first, then a line of IoU by class for each row."""
    tables = [labels_table(table)] if table.study == "labels" else []
    return "\n\n".join([*tables, class_table(table), note(table)]) + "\n"


def note(table: StudyTable) -> str:
    """What the figures are: task, steps, seeds, labels, protocol, machine and command."""
    several = len(table.seeds) > 1
    seeds = ", ".join(map(str, table.seeds))
    env = table.environment
    return (
        f"{table.source} → {table.target}, translation {table.translate.partition(':')[0]}, {table.steps} steps in "
        f"every row, {'mean ± standard deviation over seeds' if several else 'seed'} {seeds}, in percent; rows with "
        f"labels train on that many labelled target images. Protocol: {Protocol(**table.protocol)}. {env['cpu']}, "
        f"torch {env['torch']}; `{table.command}`"
    )


def class_table(table: StudyTable) -> str:
    """IoU by class and mIoU; on the paper's task with the paper's line below each of its rows."""
    lines = []
    for row in table.rows:
        lines.append([row.name, *row.iou.values(), f"**{row.miou}**"])
        if paper.is_paper_task(table.source, table.target) and (published := _published(row)):
            iou, miou = published
            lines.append([f"*{_paper_name(row)}, UDAS paper*", *(f"{v:.1f}" for v in iou), f"{miou:.1f}"])
    return pipe_table(["Model", *table.rows[0].iou, "mIoU"], lines)


def _paper_name(row: RowScores) -> str:
    return row.name.partition(",")[0]


def _published(row: RowScores) -> tuple[tuple[float, ...], float] | None:
    """The paper trains its last row with labels: it has nothing to set beside ours without."""
    if row.recipe == "udas" and not row.labels:
        return None
    return paper.ABLATION.get(_paper_name(row))


def labels_table(table: StudyTable) -> str:
    """mIoU of both methods by number of labelled target images, most first, and UDAS − Supervised by seed."""
    rows = {(r.recipe, r.labels): r.miou for r in table.rows}
    counts = sorted({r.labels for r in table.rows}, reverse=True)
    lines = [[name, *(rows.get((recipe, n), "–") for n in counts)] for recipe, name in NAMES.items()]
    lines.append(["UDAS − Supervised", *(_signed(gap) for gap in gaps(table).values())])
    if paper.is_paper_task(table.source, table.target):
        for recipe, name in NAMES.items():
            cells = (paper.LABELS[recipe].get(n) for n in counts)
            lines.append([f"*{name}, UDAS paper*", *("–" if v is None else f"{v:.1f}" for v in cells)])
    return pipe_table(["Labelled target images", *map(str, counts)], lines)


def gaps(table: StudyTable) -> dict[int, Spread]:
    """UDAS − Supervised by number of labels, most first: the spread of the differences at one seed."""
    rows = {(r.recipe, r.labels): r.miou.by_seed for r in table.rows}
    found = {}
    for n in sorted({r.labels for r in table.rows}, reverse=True):
        both = zip(rows["udas", n], rows["supervised", n], strict=True) if n else ()
        found[n] = Spread.of([ours - theirs for ours, theirs in both])
    return found


def _signed(gap: Spread) -> str:
    return f"+{gap}" if gap.mean is not None and gap.mean >= 0 else str(gap)


def pipe_table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, rule, *lines))


def csv_text(table: StudyTable) -> str:
    """``table.csv``: a line for each row and seed, then each row's mean and standard deviation, in percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "recipe", "labels", "seed", *table.rows[0].iou, "mIoU"])
    for row in table.rows:
        start = [row.name, row.recipe, row.labels]
        spreads = [*row.iou.values(), row.miou]
        for i, seed in enumerate(table.seeds):
            writer.writerow([*start, seed, *(s.by_seed[i] for s in spreads)])
        writer.writerow([*start, "mean", *(s.mean for s in spreads)])
        writer.writerow([*start, "std", *(s.std for s in spreads)])
    return out.getvalue()
