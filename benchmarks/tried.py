"""Variants of our recipe on a target, one run each: ``python benchmarks/tried.py camvid``.

Each is a row of accuracy.py's methods on that target with a few other settings, so its figures compare with those of
that row at the same seed, which is made too. Complete runs are kept.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import accuracy
import harness
import torch
from run_records import make_table

from udas_fast.tools.study.plan import StudyPlan
from udas_fast.tools.study.rows import StudyRow

PAIR_OF = {
    target.partition(":")[0]: pair for pair, domains in accuracy.PAIRS.items() for target in domains.targets
}
RECIPE = "online_self_training"
STAGE, OBJECTIVE = "stages.online", "stages.online.objective"
# Settings by what is different; they follow those of all studies.
VARIANTS: dict[str, tuple[str, ...]] = {
    "the source alone": (f"{OBJECTIVE}.weight=0",),  # what more steps are worth
    "no rare classes": ("input.rare_classes=null",),
    "images scaled by 1 to 2": tuple(
        f"input.{stream}.{key}"
        for stream in ("source", "target")
        for key in ("scale=[1.0,2.0]", "crop=[180,240]")
    ),
    "the source in the target's colours": (f"{OBJECTIVE}.translate=lab",),
    "a mirrored view of the teacher": (f"{OBJECTIVE}.flip_view=true",),
    "a masked view": (f"{OBJECTIVE}.masked={{}}",),
    "one threshold, 0.9": (f"{OBJECTIVE}.threshold=0.9",),
    "one threshold, 0.9, and a masked view": (f"{OBJECTIVE}.threshold=0.9", f"{OBJECTIVE}.masked={{}}"),
    "rate 3e-4": (f"{STAGE}.optimizer.lr=3e-4",),
    "no CutMix": (f"{OBJECTIVE}.cut_mix=null",),
    "labels weighed by image": (f"{OBJECTIVE}.share=image",),
    "statistics by domain": ("model.norm=domain",),
    "the student's weights": (f"{OBJECTIVE}.result=student",),
}


def main() -> None:
    """Make the missing runs, then write tried-TARGET-N-labels.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=PAIR_OF)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-labels", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="all, or these")
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/accuracy"), help="folder of accuracy.py's runs"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "command": f"python benchmarks/tried.py {arguments.target} --seed {arguments.seed} "
        f"--num-labels {arguments.num_labels} --variants {shlex.join(arguments.variants)}",
        "environment": harness.environment("cuda" if torch.cuda.is_available() else "cpu"),
    }
    plan = planned(arguments)
    folder = accuracy.runs_folder(arguments.runs, PAIR_OF[arguments.target])
    table = make_table(plan, folder, document["command"], jobs=arguments.jobs)
    assert table is not None  # as all runs are made
    document["table"] = table.to_dict()
    path = harness.RESULTS / f"tried-{arguments.target}-{arguments.num_labels}-labels.json"
    harness.write(path, document)
    print(path)


def planned(arguments: argparse.Namespace) -> StudyPlan:
    """Return the runs: the row itself, then its variants."""
    table = f"methods-{PAIR_OF[arguments.target]}"
    plan = accuracy.plans(table, [arguments.seed], arguments.data, arguments.runs)[arguments.target]
    rows = (run for run in plan.runs if run.row.recipe == RECIPE)
    itself = next(run for run in rows if run.row.num_labels == arguments.num_labels)
    runs = [itself, *(replace(itself, row=changed(itself.row, name)) for name in arguments.variants)]
    return StudyPlan("methods", itself.task, tuple(run.row for run in runs), tuple(runs), None)


def changed(row: StudyRow, variant: str) -> StudyRow:
    """Return ``row`` with the settings of a variant."""
    return replace(row, title=f"{row.title}: {variant}", settings=(*row.settings, *VARIANTS[variant]))


if __name__ == "__main__":
    main()
