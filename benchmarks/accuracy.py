"""Accuracy by task, made by the command line and kept as one JSON a task.

    python benchmarks/accuracy.py streets --seeds 0 1 2
    python benchmarks/accuracy.py rendered-camvid --seeds 0 1 2 --data DATA --jobs 2
    python benchmarks/accuracy.py day-dusk --seeds 0 1 2 --data DATA --jobs 2
    python benchmarks/accuracy.py variants --data DATA

Steps are fixed and equal over the rows of a task, and the last weights count. A run that is already complete is not
made again; one that was cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

from udas_fast.study.plan import Row, Run, Task
from udas_fast.study.runner import make_runs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class StudyTask:
    """The two studies of one task: datasets below --data, labels, and the translation of the rows ST."""

    result: str
    source: str
    target: str
    ablation_labels: int
    labels: str
    cyclegan: tuple[str, ...] = ()  # options of `udas-fast translate`; none: LAB


ADAPTATION = "stages.adaptation.objective"
SETTINGS = (
    "model.width=16",
    "model.output_stride=8",
    "model.norm=batch",
    "precision=bf16",
    f"{ADAPTATION}.kl_weight=0",
    f"{ADAPTATION}.discriminator_width=16",
    f"{ADAPTATION}.discriminator_stride=2",
)
# One data engine, whatever is installed: the engines' pixels differ by a grey level.
SIZE, STEPS = (180, 240), 800
SHARED = ("--engine", "torch", "--small", "{}x{}".format(*SIZE), "--steps", str(STEPS))
SHARED += tuple(word for setting in SETTINGS for word in ("--set", setting))
STUDIES = {
    "rendered-camvid": StudyTask(
        "study-rendered-camvid",
        "camvid:{data}/rendered",
        "camvid:{data}/camvid",
        50,
        "100,50,20,0",
        ("--small", "128x128", "--steps", "3000", "--set", "precision=bf16"),
    ),
    "day-dusk": StudyTask(
        "study-camvid-day-dusk", "camvid-day:{data}/camvid", "camvid-dusk:{data}/camvid", 20, "20,0"
    ),
}

AGREE = (f"{ADAPTATION}.kl_weight=0.1",)
STRONG = (f"{ADAPTATION}.adversarial_weights=[0.01,0.002]",)
BY_DOMAIN = ("model.norm=domain",)
# What else was tried, one seed each: (task, what differs from the study's row, recipe, translation, settings).
VARIANTS = (
    ("rendered-camvid", "ST by LAB", "no_adaptation", "lab", ()),
    ("rendered-camvid", "ST by FDA", "no_adaptation", "fda", ()),
    ("rendered-camvid", "UDA with agreement, weight 0.1", "uda", "none", AGREE),
    ("rendered-camvid", "UDA with ten times the adversary", "uda", "none", STRONG),
    ("rendered-camvid", "UDA, statistics by domain", "uda", "none", BY_DOMAIN),
    ("day-dusk", "ST + UDA with agreement, weight 0.1", "uda", "lab", AGREE),
    ("day-dusk", "ST + UDA with ten times the adversary", "uda", "lab", STRONG),
    ("day-dusk", "ST + UDA, statistics by domain", "uda", "lab", BY_DOMAIN),
)


def main() -> None:
    """Run what is missing for the seeds asked for, then write the task's JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("streets", "variants", *STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "task": arguments.task,
        "command": f"python benchmarks/accuracy.py {arguments.task}"
        + ("" if arguments.task == "variants" else f" --seeds {shlex.join(map(str, arguments.seeds))}"),
        "environment": harness.environment("cpu"),
    }
    name = arguments.task
    if arguments.task == "streets":
        document["runs"] = [run for seed in arguments.seeds for run in streets(seed, arguments)]
    elif arguments.task == "variants":
        document["runs"] = list(variants(arguments))
    else:
        name = STUDIES[arguments.task].result
        document |= studies(STUDIES[arguments.task], arguments)
    path = RESULTS / f"{name}.json"
    harness.write(path, document)
    print(path)


def streets(seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The four rows of one demo."""
    out = arguments.runs / "streets" / f"seed-{seed}"
    command = ["udas-fast", "demo", "--seed", str(seed), "--out", str(out)]
    if not (out / "demo.json").is_file():
        run(command)
    demo = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    for name, row in demo["runs"].items():
        yield {"name": name, "seed": seed, "command": shlex.join(command), "phases": compact(row["phases"])}


def compact(phases: dict[str, Any]) -> dict[str, Any]:
    """Scores without the confusion matrices, which the runs keep."""
    return {name: {k: v for k, v in s.items() if k != "confusion_matrix"} for name, s in phases.items()}


def studies(task: StudyTask, arguments: argparse.Namespace) -> dict[str, Any]:
    """The table.json of both studies, which share their runs."""
    out = arguments.runs / arguments.task
    source, target = (spec.format(data=arguments.data) for spec in (task.source, task.target))
    translate = "lab"
    if task.cyclegan:
        translated = out / "translation"
        command = ["--source", source, "--target", target, "--out", str(translated), *task.cyclegan]
        run(["udas-fast", "translate", *(["--resume", str(translated)] if translated.is_dir() else command)])
        translate = f"translated:{translated}"
    shared = ["--source", source, "--target", target, "--translate", translate, "--out", str(out)]
    shared += ["--seeds", ",".join(map(str, arguments.seeds)), *SHARED, "--jobs", str(arguments.jobs)]
    for study, labels in (("ablation", str(task.ablation_labels)), ("labels", task.labels)):
        run(["udas-fast", "study", study, "--labels", labels, *shared])
    return {
        study: json.loads((out / study / "table.json").read_text(encoding="utf-8"))
        for study in ("ablation", "labels")
    }


def variants(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One run for each of :data:`VARIANTS`, with the seed that the settings were chosen with."""
    for name, title, recipe, translate, settings in VARIANTS:
        study = STUDIES[name]
        source, target = (spec.format(data=arguments.data) for spec in (study.source, study.target))
        task = Task(source, target, translate, SIZE, STEPS, (*SETTINGS, *settings), engine="torch")
        planned = Run(Row(title, recipe, translated=translate != "none"), task, seed=0)
        folder = arguments.runs / "variants" / name / re.sub(r"\W+", "-", title.lower())
        make_runs([planned], folder)
        scores = json.loads((folder / planned.folder / "scores.json").read_text(encoding="utf-8"))
        yield {
            "task": name,
            "name": title,
            "seed": planned.seed,
            "command": shlex.join(planned.command("RUN")),
            "phases": compact(scores["phases"]),
        }


def run(command: list[str]) -> None:
    """Run the command line of this interpreter's environment; stop at its first failure."""
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "udas_fast.cli", *command[1:]], check=True)


if __name__ == "__main__":
    main()
