"""A whole study: check, plan, run, and show."""

from __future__ import annotations

import json
from pathlib import Path

from udas_fast.atomic import atomic_write, make_folder
from udas_fast.data.domains import Domains
from udas_fast.tools.study.plan import Plan
from udas_fast.tools.study.plots import labels_plot, methods_plot, sheet
from udas_fast.tools.study.results import StudyTable, collect
from udas_fast.tools.study.runner import make_runs
from udas_fast.tools.study.tables import csv_text, markdown

PLOTS = {"labels": labels_plot, "methods": methods_plot}


def run_study(plan: Plan, out: Path, *, command: str, jobs: int = 1) -> StudyTable:
    """Make what is missing of ``plan`` under ``out/runs``, then write ``out/STUDY/``.

    There: table.md, table.csv, table.json, sheet.png, and labels.png or methods.png of these studies. Studies of one
    ``out`` share the runs that are the same. ``command`` is what table.json tells a reader to type.

    Raises:
        InputError: before any run, where a dataset is not as it should be; else :func:`make_runs`'s reasons.
        Interrupted: Ctrl-C or SIGTERM.
    """
    for run in plan.runs[: len(plan.rows)]:
        Domains.open(run.data, run.recipe()).classes()
    if plan.left_out:
        print(plan.left_out, flush=True)
    make_runs(plan.runs, out / "runs", jobs=jobs)
    table = collect(plan, out / "runs", command)
    folder = out / plan.study
    make_folder(folder)
    atomic_write(markdown(table), folder / "table.md")
    atomic_write(csv_text(table), folder / "table.csv")
    atomic_write(json.dumps(table.to_dict(), indent=1) + "\n", folder / "table.json")
    sheet(plan, out / "runs", folder / "sheet.png")
    if plan.study in PLOTS:
        PLOTS[plan.study](table, folder / f"{plan.study}.png")
    return table
