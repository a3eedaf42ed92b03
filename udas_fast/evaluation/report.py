"""Tables of scores: Markdown for files, rich for terminals."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udas_fast.data.types import ClassSet
from udas_fast.errors import bad
from udas_fast.evaluation.metrics import Scores


def scores_table(rows: Mapping[str, Scores], classes: ClassSet, markdown: bool = True) -> str:
    """Per-class IoU, means and pixel accuracy in percent: a line per class, a column per entry of ``rows``.

    Aligned Markdown, or a plain text table, with the protocol below; "–" stands for a class that does not
    occur. Raises InputError for no rows or scores of other classes.
    """
    if not markdown:
        console = Console(width=10_000, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(rich_table(rows, classes))
        text = capture.get()
        return "\n".join(line.rstrip() for line in text.splitlines())
    header, *body = _cells(rows, classes)
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for line in (header, rule, *body):
        first, *others = line
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_protocols(rows)])


def rich_table(rows: Mapping[str, Scores], classes: ClassSet) -> Table:
    """The table for a terminal, classes with their colours. Raises InputError as :func:`scores_table`."""
    header, *body = _cells(rows, classes)
    table = Table(caption=Text("\n".join(_protocols(rows))), caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for i, line in enumerate(body):
        is_class = i < len(classes)
        colour = "rgb({},{},{})".format(*classes.palette[i]) if is_class else ""
        first = Text.assemble(("■ ", colour), line[0]) if is_class else Text(line[0])
        table.add_row(first, *line[1:], style="" if is_class else "bold", end_section=i == len(classes) - 1)
    return table


def _cells(rows: Mapping[str, Scores], classes: ClassSet) -> list[list[str]]:
    """Header, a line per class, the means and the accuracy."""
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
    table.append(["pixel accuracy", *(_percent(s.pixel_accuracy) for s in all_scores)])
    return table


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _protocols(rows: Mapping[str, Scores]) -> list[str]:
    """One line where all scores share a protocol, else a line for each."""
    if len({scores.protocol for scores in rows.values()}) == 1:
        return [f"Protocol: {next(iter(rows.values())).protocol}"]
    return [f"Protocol of {name}: {scores.protocol}" for name, scores in rows.items()]
