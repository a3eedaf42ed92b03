"""Files and steps that are no good in one process count in all: the run equals the one that met them alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounding import SGD, assert_equal_within_rounding
from torch import Tensor, nn

from udas_fast import Trainer, distributed
from udas_fast.data import CAMVID, BadFile, BadFiles, Sample, SegmentationDataset, open_dataset
from udas_fast.data.domains import Domains
from udas_fast.data.sampler import Sampler
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.errors import InputError
from udas_fast.models.norm import SyncBatchNorm2d
from udas_fast.recipes import Recipe, get_recipe, override, small

IMAGES, STEPS = 6, 4


class Turned(SegmentationDataset):
    """A dataset whose images of the second step cannot be read: one is drawn by each of two processes."""

    def __init__(self, root: Path) -> None:
        self.dataset = open_dataset(f"camvid:{root}", "train")
        self.name, self.classes = self.dataset.name, self.dataset.classes
        sampler = Sampler(IMAGES, 2, 0, "source/source")
        self.turned = [sampler.image_index(draw) for draw in sampler.draws(1)]

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Sample:
        if index in self.turned:
            raise InputError(f"image {index} is none")
        return self.dataset[index]


class Sick(nn.Module):
    """Returns infinite logits in some training forwards of the last process."""

    def __init__(self, *sick: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm = nn.Conv2d(3, 4, 3, 4, 1), SyncBatchNorm2d(4)
        self.head = nn.Conv2d(4, len(CAMVID), 1)
        self.sick, self.calls = sick, -1

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.norm(self.body(x)).relu())
        self.calls += self.training
        sick = (
            self.training
            and self.calls in self.sick
            and distributed.get_rank() == distributed.get_world_size() - 1
        )
        return logits * torch.inf if sick else logits


def recipe() -> Recipe:
    plan = small(get_recipe("no_adaptation"), size=(24, 32), steps=STEPS, batch_size=2)
    stages = tuple(replace(stage, optimizer=replace(stage.optimizer, **SGD)) for stage in plan.stages)
    return override(replace(plan, stages=stages), ["model.width=4", "model.norm=sync"])


def meet_bad_files(root: Path, folder: Path) -> None:
    data = Turned(root)
    first, second = (f"image {index} is none" for index in data.turned)

    def train(limit: int) -> None:
        domains = Domains(source=data, max_bad_files=limit)
        Trainer(recipe(), domains, run_dir=folder / f"files-{limit}", device="cpu").fit()

    # One of the two may be skipped, and each process has met one.
    with pytest.raises(BadFile, match=f"{second}; bad files that may be skipped: 1; stopped after step 1:"):
        train(1)
    train(2)
    if distributed.is_main():
        for limit, found in ((1, [first]), (2, [first, second])):
            newest = CheckpointFolder(folder / f"files-{limit}/checkpoints").newest()
            assert read_state(newest)["bad_files"] == found


def count_together() -> None:
    """A file that both meet is one; what each has met is known to both, in one order."""
    faults = BadFiles(3)
    with faults.synchronized():
        faults.add(["both", f"of {distributed.get_rank()}"])
    assert faults.found == ["both", "of 0", "of 1"]
    with pytest.raises(BadFile, match="one more; bad files that may be skipped: 3"), faults.synchronized():
        faults.add(["one more"] if distributed.get_rank() == 1 else [])


def meet_bad_steps(root: Path, folder: Path) -> None:
    def train(name: str, *sick: int) -> None:
        domains = Domains(source=open_dataset(f"camvid:{root}", "train"), engine="torch")
        options = {"run_dir": folder / name, "device": "cpu", "log_every": 2, "max_bad_steps": 1}
        Trainer(recipe(), domains, Sick(*sick), **options).fit()

    train("steps", 2)
    # All have counted the first, or they would not agree on what to do with the second.
    with pytest.raises(InputError, match="loss 'seg' is nan at step 3"):
        train("too-many-steps", 1, 3)


def train_all(root: Path, folder: Path) -> None:
    meet_bad_files(root, folder)
    meet_bad_steps(root, folder)
    if distributed.get_world_size() > 1:
        count_together()


@pytest.fixture(scope="module")
def runs(
    camvid_writer: Callable[..., Path],
    processes: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """``one`` and ``two``: what so many processes have left."""
    root = camvid_writer(tmp_path_factory.mktemp("data") / "camvid", train=IMAGES, size=(24, 32))
    folder = tmp_path_factory.mktemp("runs")
    train_all(root, folder / "one")
    processes(2, train_all, root, folder / "two")
    return folder


@pytest.mark.slow
def test_bad_files_are_counted_over_all_processes_in_every_step(runs: Path) -> None:
    assert_equal_within_rounding(runs / "one/files-2", runs / "two/files-2")


@pytest.mark.slow
def test_a_step_that_is_bad_in_one_process_is_left_out_by_all(runs: Path) -> None:
    assert_equal_within_rounding(runs / "one/steps", runs / "two/steps")
    for run in (runs / "one/steps", runs / "two/steps"):
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == [0, 1, 3]
        assert read_state(CheckpointFolder(run / "checkpoints").newest())["bad_steps"] == 1
        assert len(json.loads((run / "fault.json").read_text())["samples"]["source"]) == 2  # of all processes
