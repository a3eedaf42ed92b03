"""Tables of a study, Markdown and CSV: rows × classes as in UDAS 4.3.1, methods × labels as in 4.3.2, DDM by round."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from udas_fast.evaluation import Protocol
from udas_fast.tools.study import paper
from udas_fast.tools.study.collect import RowScores, Spread, StudyTable

# Scores of DDM's phases: region_1, sample_1, student_1.teachers, student_1, region_2, …
DDM_NETWORKS = {
    "region_{}": "Region-level teacher",
    "sample_{}": "Sample-level teacher",
    "student_{}.teachers": "Both teachers' mean",
    "student_{}": "Student",
}


def markdown(table: StudyTable) -> str:
    """Return ``table.md``: the study's own tables, then a line of IoU by class for each row."""
    tables = study_tables(table)
    if table.study != "ablation":
        tables.append(class_table(table))
    return "\n\n".join([*tables, note(table)]) + "\n"


def study_tables(table: StudyTable) -> list[str]:
    """Return the study's own tables: rows × classes, or methods × labels and the networks of DDM by round."""
    if table.study == "ablation":
        return [class_table(table)]
    return [labels_table(table), *ddm_tables(table)]


def note(table: StudyTable) -> str:
    """Return the conditions of the figures: task, steps, seeds, labels, protocol, machine and command."""
    several = len(table.seeds) > 1
    seeds = ", ".join(map(str, table.seeds))
    env = table.environment
    steps = (
        "each recipe's own number of steps" if table.steps is None else f"{table.steps} steps in every row"
    )
    if any(row.recipe == "ddm" for row in table.rows):
        steps += ", of each of DDM's three networks"
    left_out = f" {table.left_out}." if table.left_out else ""
    if absent := _absent(table):
        left_out += (
            f" Classes that some runs neither show nor predict are not in their mIoU: {', '.join(absent)}."
        )
    return (
        f"{table.source} → {table.target}, translation {table.translate.partition(':')[0]}, {steps}, "
        f"{'mean ± standard deviation over seeds' if several else 'seed'} {seeds}, in percent; rows with "
        f"labels train on that many labelled target images.{left_out} Protocol: {Protocol(**table.protocol)}. "
        f"{env['cpu']}, torch {env['torch']}; `{table.command}`"
    )


def _absent(table: StudyTable) -> list[str]:
    """Return the classes that a run has no IoU of."""
    return [name for name in table.rows[0].iou if any(None in row.iou[name].by_seed for row in table.rows)]


def class_table(table: StudyTable) -> str:
    """Return IoU by class and mIoU; on the paper's task with the paper's line below each of its rows."""
    lines: list[list[object]] = []
    for row in table.rows:
        lines.append([row.name, *row.iou.values(), f"**{row.miou}**"])
        if paper.is_paper_task(table.source, table.target) and (published := _published(row)):
            iou, miou = published
            lines.append([f"*{row.method}, UDAS paper*", *(f"{v:.1f}" for v in iou), f"{miou:.1f}"])
    return pipe_table(["Model", *table.rows[0].iou, "mIoU"], lines)


def _published(row: RowScores) -> tuple[tuple[float, ...], float] | None:
    """Return the paper's (IoU by class, mIoU) of a row; it trains its last row with labels only."""
    if row.recipe == "udas" and not row.labels:
        return None
    return paper.ABLATION.get(row.method)


def labels_table(table: StudyTable) -> str:
    """Return mIoU of each method by number of labelled target images, most first, and its gain over Supervised."""
    counts = label_counts(table)
    base = _baseline(table)
    lines: list[list[object]] = []
    for name, rows in methods(table).items():
        lines.append([name, *(rows[n].miou if n in rows else "–" for n in counts)])
    for name, by_labels in gaps(table).items():
        found = (by_labels.get(n) for n in counts)
        lines.append([f"{name} − {base}", *("–" if gap is None else _signed(gap) for gap in found)])
    if paper.is_paper_task(table.source, table.target):
        for name, rows in methods(table).items():
            recipe = next(iter(rows.values())).recipe
            if recipe in paper.LABELS:
                cells = (paper.LABELS[recipe].get(n) for n in counts)
                source = "DDM" if recipe == "ddm" else "UDAS"
                lines.append(
                    [f"*{name}, {source} paper*", *("–" if v is None else f"{v:.1f}" for v in cells)]
                )
    return pipe_table(["Labelled target images", *map(str, counts)], lines)


def label_counts(table: StudyTable) -> list[int]:
    """Return the numbers of labelled target images, most first."""
    return sorted({row.labels for row in table.rows}, reverse=True)


def methods(table: StudyTable) -> dict[str, dict[int, RowScores]]:
    """Return the rows by method, then by number of labels."""
    found: dict[str, dict[int, RowScores]] = {}
    for row in table.rows:
        found.setdefault(row.method, {})[row.labels] = row
    return found


def gaps(table: StudyTable) -> dict[str, dict[int, Spread]]:
    """Return the spread over seeds of method − Supervised, by method and number of labels."""
    rows = methods(table)
    baseline = _baseline(table)
    base = rows.pop(baseline, {})
    return {
        name: {n: _difference(row.miou, base[n].miou) for n, row in by_labels.items() if n in base}
        for name, by_labels in rows.items()
        if by_labels.keys() & base.keys()
    }


def _baseline(table: StudyTable) -> str:
    """Return the name of recipe ``supervised`` in the table, "" where it has no row."""
    return next((row.method for row in table.rows if row.recipe == "supervised"), "")


def _difference(ours: Spread, base: Spread) -> Spread:
    pairs = zip(ours.by_seed, base.by_seed, strict=True)
    return Spread.of([None if a is None or b is None else a - b for a, b in pairs])


def ddm_tables(table: StudyTable) -> list[str]:
    """Return a table for each row of DDM: both teachers, their mean and the student after each round."""
    found = []
    for row in table.rows:
        if row.recipe != "ddm":
            continue
        numbers = range(1, sum(phase.startswith("region_") for phase in row.phases[0]) + 1)
        lines = []
        for phase, name in DDM_NETWORKS.items():
            by_round = ([scores[phase.format(n)] for scores in row.phases] for n in numbers)
            lines.append([name, *map(Spread.of, by_round)])
        found.append(pipe_table([row.name, *(f"round {n}" for n in numbers)], lines))
    return found


def _signed(gap: Spread) -> str:
    return f"+{gap}" if gap.mean is not None and gap.mean >= 0 else str(gap)


def pipe_table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, rule, *lines))


def csv_text(table: StudyTable) -> str:
    """Return ``table.csv``: a line per row and seed, then each row's mean and standard deviation, in percent."""
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
