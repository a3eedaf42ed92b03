"""Accuracy by task, recipe, labels and seed, made by the command line and kept as one JSON a task.

    python benchmarks/accuracy.py streets --seeds 0 1 2
    python benchmarks/accuracy.py rendered-camvid --seeds 0 1 2 --data DATA

Steps are fixed and equal over the rows of a task, the last weights count, and val is looked at once a phase. A run
that is already complete is not made again; one that was cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness

RESULTS = Path(__file__).parent / "results"
ROWS = (("no_adaptation", 0), ("udas", 0), ("udas", 50), ("supervised", 50))
# One data engine, whatever is installed: the engines' pixels differ by a grey level.
RENDERED_CAMVID = ("--small", "180x240", "--steps", "600", "--engine", "torch")


def main() -> None:
    """Run what is missing for the seeds asked for, then write the task's JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("streets", "rendered-camvid"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    arguments = parser.parse_args()
    make = streets if arguments.task == "streets" else rendered_camvid
    runs = [run for seed in arguments.seeds for run in make(seed, arguments)]
    document = {
        "task": arguments.task,
        "command": f"python benchmarks/accuracy.py {arguments.task} --seeds {shlex.join(map(str, arguments.seeds))}",
        "environment": harness.environment("cpu"),
        "runs": runs,
    }
    path = RESULTS / f"{arguments.task}.json"
    harness.write(path, document)
    print(f"{path}: {len(runs)} runs")


def streets(seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The four rows of one demo."""
    out = arguments.runs / "streets" / f"seed-{seed}"
    command = ["udas-fast", "demo", "--seed", str(seed), "--out", str(out)]
    if not (out / "demo.json").is_file():
        run(command)
    demo = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    for name, row in demo["runs"].items():
        yield {"name": name, "seed": seed, "command": shlex.join(command), "phases": compact(row["phases"])}


def rendered_camvid(seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One run a row of :data:`ROWS`."""
    for recipe, labels in ROWS:
        out = arguments.runs / "rendered-camvid" / f"{recipe}-{labels}-seed-{seed}"
        command = ["udas-fast", "train", recipe, "--target", f"camvid:{arguments.data}/camvid"]
        if recipe != "supervised":
            command += ["--source", f"camvid:{arguments.data}/rendered"]
        command += ["--labels", str(labels), *RENDERED_CAMVID, "--seed", str(seed), "--out", str(out)]
        if not (out / "model.pt").is_file():
            started = time.perf_counter()
            run(["udas-fast", "train", "--resume", str(out)] if (out / "checkpoints").is_dir() else command)
            (out / "seconds").write_text(f"{time.perf_counter() - started:.0f}")
        scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
        yield {
            "name": f"{recipe}, {labels} labels" if labels or recipe == "udas" else recipe,
            "seed": seed,
            "command": shlex.join(command),
            "seconds": int((out / "seconds").read_text()),
            "phases": compact(scores["phases"]),
        }


def compact(phases: dict[str, Any]) -> dict[str, Any]:
    """Scores without the confusion matrices, which the runs keep."""
    return {name: {k: v for k, v in s.items() if k != "confusion_matrix"} for name, s in phases.items()}


def run(command: list[str]) -> None:
    """Run the command line of this interpreter's environment; stop at its first failure."""
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "udas_fast.cli", *command[1:]], check=True)


if __name__ == "__main__":
    main()
