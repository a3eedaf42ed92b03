"""Accuracy by task, made by the command line and kept as one JSON a task.

    python benchmarks/accuracy.py streets --seeds 0 1 2
    python benchmarks/accuracy.py rendered-camvid --seeds 0 1 2 --data DATA --jobs 2
    python benchmarks/accuracy.py day-dusk --seeds 0 1 2 --data DATA --jobs 2

Steps are fixed and equal over the rows of a task, and the last weights count. A run that is already complete is not
made again; one that was cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class StudyTask:
    """The two studies of one task: datasets below --data, labels, and what all runs share."""

    result: str
    source: str
    target: str
    ablation_labels: int
    labels: str
    options: tuple[str, ...]


# One data engine, whatever is installed: the engines' pixels differ by a grey level.
SHARED = ("--engine", "torch", "--small", "180x240", "--steps", "600")
STUDIES = {
    "rendered-camvid": StudyTask(
        "study-rendered-camvid", "camvid:{data}/rendered", "camvid:{data}/camvid", 50, "100,50,20,0", SHARED
    ),
    "day-dusk": StudyTask(
        "study-camvid-day-dusk", "camvid-day:{data}/camvid", "camvid-dusk:{data}/camvid", 20, "20,0", SHARED
    ),
}


def main() -> None:
    """Run what is missing for the seeds asked for, then write the task's JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("streets", *STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "task": arguments.task,
        "command": f"python benchmarks/accuracy.py {arguments.task} --seeds {shlex.join(map(str, arguments.seeds))}",
        "environment": harness.environment("cpu"),
    }
    name = arguments.task
    if arguments.task == "streets":
        document["runs"] = [run for seed in arguments.seeds for run in streets(seed, arguments)]
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
        # Without the confusion matrices, which the runs keep.
        phases = {
            p: {k: v for k, v in s.items() if k != "confusion_matrix"} for p, s in row["phases"].items()
        }
        yield {"name": name, "seed": seed, "command": shlex.join(command), "phases": phases}


def studies(task: StudyTask, arguments: argparse.Namespace) -> dict[str, Any]:
    """The table.json of both studies, which share their runs."""
    out = arguments.runs / arguments.task
    source, target = (spec.format(data=arguments.data) for spec in (task.source, task.target))
    shared = ["--source", source, "--target", target, "--out", str(out)]
    shared += ["--seeds", ",".join(map(str, arguments.seeds)), *task.options, "--jobs", str(arguments.jobs)]
    for study, labels in (("ablation", str(task.ablation_labels)), ("labels", task.labels)):
        run(["udas-fast", "study", study, "--labels", labels, *shared])
    return {
        study: json.loads((out / study / "table.json").read_text(encoding="utf-8"))
        for study in ("ablation", "labels")
    }


def run(command: list[str]) -> None:
    """Run the command line of this interpreter's environment; stop at its first failure."""
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "udas_fast.cli", *command[1:]], check=True)


if __name__ == "__main__":
    main()
