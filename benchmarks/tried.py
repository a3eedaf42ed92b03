"""Variants of a task's study rows, one run each: ``python benchmarks/tried.py day-dusk``.

Every variant is a row of the task's ablation, or DDM's row of its methods study, with a few other settings at the same
size and steps, so its figures compare with ablation-TASK.json and methods-TASK.json. Complete runs are kept.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuracy
import harness
import torch

from udas_fast.recipes import Changes
from udas_fast.recipes.ddm import ROUNDS
from udas_fast.tools.study.plan import StudyRun
from udas_fast.tools.study.rows import StudyRow, Task
from udas_fast.tools.study.runner import is_run_complete

ADAPTATION, SELF_TRAINING = "stages.adaptation", "stages.self_training"
# Settings by the title of the variant; they follow those of all studies.
UDA = {
    "λ_adv 0: no adversary": [f"{ADAPTATION}.objective.adversary=null"],
    "λ_adv × 10": [f"{ADAPTATION}.objective.adversary.weights=[0.01,0.002]"],
    "discriminators learn at a tenth of their rate": [f"{ADAPTATION}.optimizer.discriminator_lr=5e-5"],
    "heads agree: λ_kl 0.1": [f"{ADAPTATION}.objective.agreement={{weight: 0.1}}"],
    "statistics by domain": ["model.norm=domain"],
}
UDAS = {
    "threshold 0.6 for all classes": [f"{SELF_TRAINING}.objective.pseudo_labels.threshold=0.6"],
    "half of the steps for adaptation, four rounds": [
        f"{ADAPTATION}.steps=400",
        f"{SELF_TRAINING}.steps=100",
        f"{SELF_TRAINING}.rounds=4",
    ],
    "statistics by domain": ["model.norm=domain"],
}
TEACHERS = [f"stages.{level}_{n}" for n in range(1, ROUNDS + 1) for level in ("region", "sample")]
# From the second round on, teachers see pseudo-labels.
JOINED, STUDENTS = TEACHERS[2:], [f"stages.student_{n}" for n in range(1, ROUNDS + 1)]
DDM = {
    "no LAB": [f"{teacher}.objective.translate=none" for teacher in TEACHERS],
    "twice the steps": [f"{stage}.steps=400" for stage in (*TEACHERS, *STUDENTS)],
    "nine in ten steps of the teachers on pseudo-labels": [
        f"{teacher}.objective.pseudo_share=0.9" for teacher in JOINED
    ],
    "λ_kd × 4": [f"{student}.objective.distillation_weight=2" for student in STUDENTS],
}
TRANSLATIONS = {"lab": "LAB statistics", "fda": "FDA"}
TASKS = {
    # (ablation of the task, translation of the source in the variants, number of labels of DDM)
    "day-dusk": ("ablation-day-dusk", "lab", 20),
    "rendered-camvid": ("ablation-rendered-camvid", "none", 50),
}


@dataclass(frozen=True)
class Variant:
    """One run: its row, what is different, and how the source is translated."""

    row: str
    title: str
    recipe: str
    translate: str | None  # None: as the recipe has it
    settings: tuple[str, ...] = ()
    num_labels: int = 0


def variants(translate: str, num_labels: int) -> list[Variant]:
    """Return the variants of a task in the table's order."""
    ddm = f"DDM, {num_labels} labels"
    found = [Variant(ddm, title, "ddm", None, tuple(settings), num_labels) for title, settings in DDM.items()]
    found += [
        Variant("ST", title, "no_adaptation", kind)
        for kind, title in TRANSLATIONS.items()
        if kind != translate
    ]
    uda = "UDA" if translate == "none" else "ST + UDA"
    found += [Variant(uda, title, "uda", translate, tuple(settings)) for title, settings in UDA.items()]
    whole = "DA + SSL" if translate == "none" else "ST + DA + SSL"
    if translate == "none":
        found.append(Variant(whole, "no translation", "udas", translate))
    found += [Variant(whole, title, "udas", translate, tuple(settings)) for title, settings in UDAS.items()]
    return found


def main() -> None:
    """Make the missing runs, then write tried-TASK.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/tried"), help="folder of the runs")
    arguments = parser.parse_args()
    name = TASKS[arguments.task][0]
    study = accuracy.STUDIES[name]
    document: dict[str, Any] = {
        "task": arguments.task,
        "command": f"python benchmarks/tried.py {arguments.task} --seed {arguments.seed}",
        "environment": harness.environment("cuda" if torch.cuda.is_available() else "cpu"),
        "studies": [name, name.replace("ablation", "methods")],
        "steps": study.steps,
        "seed": arguments.seed,
    }
    runs = planned(arguments.task, arguments.seed, arguments.data, arguments.runs)
    path = accuracy.RESULTS / f"tried-{arguments.task}.json"
    for _, run, out in runs:
        if not is_run_complete(run, out):
            again = ["udas-fast", "train", "--resume", str(out)]
            accuracy.run(again if (out / "run.yaml").is_file() else run.command(str(out)))
        # Written after every run, as a run takes minutes.
        document["rows"] = [result(*each) for each in runs if is_run_complete(*each[1:])]
        harness.write(path, document)
    print(path)


def planned(task: str, seed: int, data: str, folder: Path) -> list[tuple[Variant, StudyRun, Path]]:
    """Return the variants of ``task``, their runs and the folders of these, in the table's order."""
    name, translate, num_labels = TASKS[task]
    study = accuracy.STUDIES[name]
    source, target = (spec.format(data=data) for spec in (study.source, study.target))
    runs: list[tuple[Variant, StudyRun, Path]] = []
    for variant in variants(translate, num_labels):
        settings = (*accuracy.SETTINGS, *variant.settings)
        kind = variant.translate or "none"
        changes = Changes(small=accuracy.SIZE, steps=study.steps)
        of_variant = Task(source, target, kind, changes, settings, engine="torch")
        translated = None if variant.translate is None else kind != "none"
        row = StudyRow(variant.title, variant.recipe, variant.num_labels, translated)
        slug = re.sub(r"\W+", "-", f"{variant.row} {variant.title}".lower()).strip("-")
        runs.append((variant, StudyRun(row, of_variant, seed), folder / task / f"{slug}-seed-{seed}"))
    return runs


def result(variant: Variant, run: StudyRun, out: Path) -> dict[str, Any]:
    """Return the settings and scores of a complete run."""
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return {
        "row": variant.row,
        "title": variant.title,
        "settings": variant.settings,
        "command": run.command(str(out)),
        "phases": accuracy.compact(scores["phases"]),
    }


if __name__ == "__main__":
    main()
