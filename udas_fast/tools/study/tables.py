"""Tables of a study, Markdown and CSV: rows × classes (UDAS 4.2, 4.3.1), methods × labels (4.3.2), DDM by round."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Sequence

from udas_fast.evaluation import Protocol
from udas_fast.tools.study import paper
from udas_fast.tools.study.collect import RowScores, Spread, StudyTable
from udas_fast.tools.study.rows import GROUPS

# Scores of DDM's phases: region_1, sample_1, student_1.teachers, student_1, region_2, …
DDM_NETWORKS = {
    "region_{}": "Region-level teacher",
    "sample_{}": "Sample-level teacher",
    "student_{}.teachers": "Both teachers' mean",
    "student_{}": "Student",
}


# Studies of methods by number of labels; the rows of the others are shown by class alone.
BY_LABELS = ("labels", "methods", "ddm")


def markdown(table: StudyTable) -> str:
    """Return ``table.md``: the study's own tables, then a line of IoU by class for each row."""
    tables = study_tables(table)
    if class_table(table) not in tables:
        tables.append(class_table(table))
    if any(row.cost for row in table.rows):
        tables.append(cost_table(table))
    return "\n\n".join([*tables, note(table)]) + "\n"


def study_tables(table: StudyTable) -> list[str]:
    """Return the study's own tables.

    Rows × classes; or methods × labels, for each mean over classes, and the networks of DDM by round; or for ``parts``
    what each of them is worth.
    """
    if table.study == "parts":
        return [parts_table(table)]
    if table.study not in BY_LABELS:
        return [class_table(table)]
    subsets = table.rows[0].subset_means
    return [labels_table(table), *(labels_table(table, name) for name in subsets), *ddm_tables(table)]


def note(table: StudyTable, steps: str = "each recipe's own number of steps") -> str:
    """Return the conditions of the figures: task, steps, seeds, labels, protocol, machine and command.

    ``steps`` says what they are where the rows differ.
    """
    several = len(table.seeds) > 1
    seeds = ", ".join(map(str, table.seeds))
    env = table.environment
    if table.steps is not None:
        steps = f"{table.steps} steps in every row"
    if any(row.recipe == "ddm" for row in table.rows):
        steps += ", of each of DDM's three networks"
    left_out = f" {table.left_out}." if table.left_out else ""
    if absent := _absent(table):
        left_out += (
            f" Classes that some runs neither show nor predict are not in their mIoU: {', '.join(absent)}."
        )
    protocol = str(Protocol(**table.protocol))
    if table.study == "gap":
        left_out += (
            " Rows Source are scored on the training images of that dataset, at the network's input size."
        )
    if table.study == "sizes":
        protocol = protocol.replace("input native size", "input of the size in training")
    translation = table.translate.partition(":")[0] if any(row.translated for row in table.rows) else "none"
    return (
        f"{table.source} → {table.target}, translation {translation}, {steps}, "
        f"{'mean ± standard deviation over seeds' if several else 'seed'} {seeds}, in percent; rows with "
        f"labels train on that many labelled target images.{left_out} Protocol: {protocol}. "
        f"{env['cpu']}, torch {env['torch']}; `{table.command}`"
    )


def _absent(table: StudyTable) -> list[str]:
    """Return the classes that a run has no IoU of."""
    return [name for name in table.rows[0].iou if any(None in row.iou[name].by_seed for row in table.rows)]


def class_table(table: StudyTable) -> str:
    """Return IoU by class and their means; on the paper's task with published lines below each of its rows."""
    first = table.rows[0]
    accuracy = ["pixel accuracy"] if table.study == "networks" else []
    lines: list[list[object]] = []
    for row in table.rows:
        accuracies: list[object] = [row.pixel_accuracy] if accuracy else []
        lines.append(
            [row.name, *row.iou.values(), *accuracies, f"**{row.miou}**", *row.subset_means.values()]
        )
        if not paper.is_paper_task(table.source, table.target):
            continue
        for line in paper.published(table.study, row.recipe, row.method, row.labels):
            iou = [_number(v) for v in line.iou or [None] * len(first.iou)]
            accuracies = [_number(line.pixel_accuracy)] if accuracy else []
            lines.append([f"*{row.method}, {line.paper}*", *iou, *accuracies, _number(line.miou)])
    means = ["mIoU", *map(_mean_name, first.subset_means)]
    return pipe_table(["Model", *first.iou, *accuracy, *means], lines)


def parts_table(table: StudyTable) -> str:
    """Return the mIoU of UDAS and of each row without a part of it, and the difference."""
    whole, *parts = table.rows
    lines: list[list[object]] = [[whole.name, whole.miou, ""]]
    lines += [[row.name, row.miou, _signed(_difference(row.miou, whole.miou))] for row in parts]
    return pipe_table(["", "mIoU", f"− {whole.method}"], lines)


def cost_table(table: StudyTable) -> str:
    """Return mIoU and cost of each row by group: networks, passes of a step, its measured time, and memory.

    Compute counts a backward as two forwards and is a multiple of plain supervision's, as time (of the runs in the
    table) and predicted memory are.
    """
    lines: list[list[object]] = []
    plain = _plain_step_seconds(table)
    for group in GROUPS:
        for row in table.rows:
            if row.group == group and (cost := row.cost) is not None:
                counts = [cost.networks, cost.forwards, cost.backwards]
                time = statistics.median(row.step_seconds) / plain if row.step_seconds and plain else None
                relative = [f"{cost.compute:.1f}", _number(time), f"{cost.memory:.1f}"]
                lines.append([row.name, group, row.miou, *counts, *relative])
    head = ["Model", "group", "mIoU", "networks", "forwards", "backwards", "compute ×", "time ×", "memory ×"]
    return pipe_table(head, lines)


def _plain_step_seconds(table: StudyTable) -> float | None:
    """Return the seconds of a step of plain supervision, on the target's labels or else the source's."""
    for recipe in ("supervised", "no_adaptation"):
        found = [seconds for row in table.rows if row.recipe == recipe for seconds in row.step_seconds]
        if found:
            return statistics.median(found)
    return None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _mean_name(subset: str) -> str:
    return f"mIoU {subset}"


def labels_table(table: StudyTable, subset: str | None = None) -> str:
    """Return mIoU of each method by number of labelled target images, most first, and its gain over Supervised.

    ``subset``: of :attr:`RowScores.subset_means`; None: the mean over all classes.
    """
    counts = label_counts(table)
    base = _baseline(table)
    lines: list[list[object]] = []
    for name, rows in methods(table).items():
        lines.append([name, *(_mean(rows[n], subset) if n in rows else "–" for n in counts)])
    for name, by_labels in gaps(table, subset).items():
        found = (by_labels.get(n) for n in counts)
        lines.append([f"{name} − {base}", *("–" if gap is None else _signed(gap) for gap in found)])
    lines += _published_by_labels(table, subset)
    head = "Labelled target images" + (f", {_mean_name(subset)}" if subset else "")
    return pipe_table([head, *map(str, counts)], lines)


def _mean(row: RowScores, subset: str | None) -> Spread:
    return row.miou if subset is None else row.subset_means[subset]


def _published_by_labels(table: StudyTable, subset: str | None) -> list[list[object]]:
    """Return the papers' lines of the methods in ``table``, which SYNTHIA has over 13 classes."""
    figures = {}
    if subset is None and paper.is_paper_task(table.source, table.target):
        figures = paper.LABELS
    elif subset == "synthia13":
        figures = paper.SYNTHIA_LABELS
    counts = label_counts(table)
    lines: list[list[object]] = []
    for name, rows in methods(table).items():
        if table.study in paper.VARIED and name not in paper.TITLES:
            continue
        recipe = next(iter(rows.values())).recipe
        for source, recipes in figures.items():
            values = [recipes.get(recipe, {}).get(n) for n in counts]
            if any(values):
                lines.append([f"*{name}, {source} paper*", *map(_number, values)])
    return lines


def label_counts(table: StudyTable) -> list[int]:
    """Return the numbers of labelled target images, most first."""
    return sorted({row.labels for row in table.rows}, reverse=True)


def methods(table: StudyTable) -> dict[str, dict[int, RowScores]]:
    """Return the rows by method, then by number of labels."""
    found: dict[str, dict[int, RowScores]] = {}
    for row in table.rows:
        found.setdefault(row.method, {})[row.labels] = row
    return found


def gaps(table: StudyTable, subset: str | None = None) -> dict[str, dict[int, Spread]]:
    """Return the spread over seeds of method − Supervised, by method and number of labels; ``subset`` of classes."""
    rows = methods(table)
    baseline = _baseline(table)
    base = rows.pop(baseline, {})
    return {
        name: {
            n: _difference(_mean(row, subset), _mean(base[n], subset))
            for n, row in by_labels.items()
            if n in base
        }
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
        numbers = range(
            1, sum(re.fullmatch(r"student_\d+", phase) is not None for phase in row.phases[0]) + 1
        )
        lines = []
        for phase, name in DDM_NETWORKS.items():
            by_round = ([scores.get(phase.format(n)) for scores in row.phases] for n in numbers)
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
    subsets = map(_mean_name, table.rows[0].subset_means)
    writer.writerow(["model", "recipe", "labels", "seed", *table.rows[0].iou, "mIoU", *subsets])
    for row in table.rows:
        start = [row.name, row.recipe, row.labels]
        spreads = [*row.iou.values(), row.miou, *row.subset_means.values()]
        for i, seed in enumerate(table.seeds):
            writer.writerow([*start, seed, *(s.by_seed[i] for s in spreads)])
        writer.writerow([*start, "mean", *(s.mean for s in spreads)])
        writer.writerow([*start, "std", *(s.std for s in spreads)])
    return out.getvalue()
