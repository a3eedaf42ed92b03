"""Every run behind the committed tables of accuracy, each once, with its estimated core-hours.

A step costs as many passes through the network as its method makes, counted on a tiny network: forward and backward of
a batch is one, a forward without gradients a third. The time of a pass is measured here, on one core. Discriminators,
losses, the reading of images and CycleGAN's translations are not counted.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import accuracy
import torch
from run_records import is_recorded, records_file
from torch import nn

from udas_fast.inference import MODEL_FILE
from udas_fast.models import ModelConfig, build_model
from udas_fast.objectives import Batches
from udas_fast.objectives.base import ObjectiveConfig, build_objective
from udas_fast.recipes import Recipe
from udas_fast.testing import TinyNetwork, make_context, random_batches, take_step
from udas_fast.tools import demo
from udas_fast.tools.study.plan import StudyRun

FORWARD_ALONE = 1 / 3  # of a pass; a backward takes about twice the time of a forward
BATCH = 4
VAL_IMAGES = 101


@dataclass(frozen=True)
class PlannedRun:
    """A run, and the tables that show it."""

    folder: Path
    recipe: Recipe
    labelled: bool
    tables: tuple[str, ...]
    recorded: bool = False

    @property
    def complete(self) -> bool:
        """True where the run has been made, here or where its scores were recorded."""
        return self.recorded or (self.folder / MODEL_FILE).is_file()

    @property
    def core_hours(self) -> float:
        """Estimated time on one core."""
        height, width = self.recipe.input.target.crop or self.recipe.input.target.size
        second = seconds_per_pass(self.recipe.model, self.recipe.precision, (height, width))
        share = self.recipe.input.batch_size / BATCH
        total = 0.0
        for phase in self.recipe.phases():
            total += phase.steps * share * passes(phase.stage.objective, self.labelled)
            total += VAL_IMAGES / BATCH * FORWARD_ALONE
        return total * second / 3600


def planned_runs(seeds: Sequence[int], data: str, runs: Path) -> list[PlannedRun]:
    """Return the runs of all tables; those that several tables show are there once.

    Args:
        seeds: of every run.
        data: folder of the datasets.
        runs: folder of accuracy.py's runs.
    """
    found: dict[Path, PlannedRun] = {}
    for run in _all(seeds, data, runs):
        before = found.setdefault(run.folder, run)
        if not {*run.tables} <= {*before.tables}:
            found[run.folder] = replace(before, tables=(*before.tables, *run.tables))
    return list(found.values())


def _all(seeds: Sequence[int], data: str, runs: Path) -> Iterator[PlannedRun]:
    """Yield each run of each table."""
    for name, (_, pair) in accuracy.STUDIES.items():
        for table, plan in accuracy.plans(name, seeds, data, runs).items():
            folder = accuracy.runs_folder(runs, pair, table if table == accuracy.RANDOM else "")
            yield from (_planned(name, folder, run) for run in plan.runs)
    for name, of in accuracy.PRECISIONS.items():
        for _, folder, plan in accuracy.precision_plans(of, seeds, data, runs):
            yield from (_planned(name, folder, run) for run in plan.runs)
    for seed in seeds:
        for entry in demo.ENTRIES:
            folder = runs / "streets" / f"seed-{seed}" / entry.folder
            yield PlannedRun(folder, entry.build(), bool(entry.num_labels), ("streets",))


def _planned(table: str, folder: Path, run: StudyRun) -> PlannedRun:
    recorded = is_recorded(run, records_file(folder))
    return PlannedRun(folder / run.folder, run.recipe(), bool(run.row.num_labels), (table,), recorded)


@cache
def passes(config: ObjectiveConfig, labelled: bool) -> float:
    """Return the passes of a batch through the network in one step of a method."""
    network = TinyNetwork()
    found: list[float] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        found.append(len(inputs[0]) * (1 if learns else FORWARD_ALONE))

    network.register_forward_pre_hook(count)
    images = random_batches(size=(64, 96), count=BATCH)
    objective = build_objective(config, 4)
    objective.networks = {name: copy.deepcopy(network) for name in config.requirements.networks}
    objective.on_round_start(network)
    given = {"source": images.source, "unlabelled": replace(images.unlabelled, label=images.source.label)}
    if labelled:
        given["labelled"] = images.labelled
    take_step(objective, network, Batches(**given), make_context(progress=0.99))
    return sum(found) / BATCH


@cache
def seconds_per_pass(model: ModelConfig, precision: str, size: tuple[int, int]) -> float:
    """Measure forward and backward of four images of ``size`` (H, W) on one core, in seconds of its time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = build_model(model, 11).train()
    images = torch.zeros(BATCH, 3, *size)
    if precision == "bf16":
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = network(images)
        sum(logits.float().square().mean() for logits in output if logits is not None).backward()
        best = min(best, time.process_time() - started)
    torch.set_num_threads(threads)
    return best


def show(found: Sequence[PlannedRun], *, jobs: int) -> str:
    """Return the list of runs, and the sums by table; a run of several tables counts in the first."""
    lines = ["core-hours  run (tables that show it)"]
    left: dict[str, float] = {}
    for run in found:
        state = "made" if run.complete else f"{run.core_hours:.2f}"
        lines.append(f"{state:>10}  {run.folder} ({', '.join(run.tables)})")
        left[run.tables[0]] = left.get(run.tables[0], 0.0) + (0.0 if run.complete else run.core_hours)
    lines += ["", "core-hours left  table"]
    lines += [f"{hours:15.1f}  {table}" for table, hours in left.items()]
    total = sum(left.values())
    lines.append(f"{total:15.1f}  all {len(found)} runs: {total / jobs:.1f} hours on {jobs} cores")
    return "\n".join(lines)
