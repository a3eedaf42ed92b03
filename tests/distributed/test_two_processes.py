"""Two processes do what one does with the same global batch, and one goes on where two were stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rounding import SGD, assert_equal_within_rounding, without_kinks

from udas_fast import TrainedModel, Trainer, distributed
from udas_fast.data import Sample, SegmentationDataset, open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.interrupt import Interrupted
from udas_fast.inference import BEST_FILE
from udas_fast.recipes import Recipe, get_recipe, override, small

pytestmark = pytest.mark.slow


def udas() -> Recipe:
    """Two steps of adaptation with all of its losses, two of self-training, the second by learnt thresholds."""
    recipe = small(get_recipe("udas"), size=(32, 48), steps=6, batch_size=2)
    return override(recipe, ["stages.adaptation.steps=2", "stages.self_training.steps=2"])


def ddm() -> Recipe:
    """A step of each network in two rounds; in the second the student's labels join, in the step or from disk."""
    recipe = small(get_recipe("ddm"), size=(32, 48), steps=12, batch_size=2)
    recipe = replace(recipe, stages=recipe.stages[:6])
    settings = [f"{level}_2.objective.pseudo_share=1.0" for level in ("region", "sample")]
    return override(
        recipe, [f"stages.{s}" for s in (*settings, "sample_2.objective.pseudo_labels.labels=disk")]
    )


class Stopped(SegmentationDataset):
    """A dataset that asks the process of rank 1 to stop when it reads its third image."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes
        self.read = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        if self.read == 3 and distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.dataset[index]


def open_domains(root: Path) -> Domains:
    images = open_dataset(f"camvid:{root}", "train")
    return Domains(images, images, images, open_dataset(f"camvid:{root}", "val"), engine="torch")


def start(make: Callable[[], Recipe], domains: Domains, run: Path) -> Trainer:
    recipe = override(make(), ["model.norm=sync", "model.width=4"])
    stages = [replace(s, rounds=1, optimizer=replace(s.optimizer, **SGD)) for s in recipe.stages]
    recipe = replace(recipe, stages=tuple(stages))
    return Trainer(recipe, domains, run_dir=run, device="cpu", log_every=2, evaluate_every=1, keep_best=True)


@without_kinks()
def train_both(root: Path, folder: Path) -> None:
    """Both recipes, and udas once more until the process of rank 1 alone is asked to stop."""
    for make in (udas, ddm):
        start(make, open_domains(root), folder / make.__name__).fit()
    if distributed.get_world_size() > 1:
        domains = open_domains(root)
        trainer = start(udas, replace(domains, source=Stopped(domains.source)), folder / "stopped")
        with pytest.raises(Interrupted, match="stopped after step 3; go on with --resume"):
            trainer.fit()


@pytest.fixture(scope="module")
def root(camvid_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return camvid_writer(tmp_path_factory.mktemp("data") / "camvid", train=5, val=3, size=(32, 48))


@pytest.fixture(scope="module")
def runs(root: Path, processes: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one/udas``, ``one/ddm``, ``two/udas``, ``two/ddm`` and ``two/stopped``."""
    folder = tmp_path_factory.mktemp("runs")
    train_both(root, folder / "one")
    processes(2, train_both, root, folder / "two")
    return folder


@pytest.mark.parametrize("name", ["udas", "ddm"])
def test_two_processes_equal_one(runs: Path, name: str) -> None:
    assert_equal_within_rounding(runs / "one" / name, runs / "two" / name)


@pytest.mark.parametrize("name", ["udas", "ddm"])
def test_two_processes_write_one_list_of_scores(runs: Path, name: str) -> None:
    one, two = (
        [json.loads(line) for line in (runs / number / name / "scores.jsonl").read_text().splitlines()]
        for number in ("one", "two")
    )
    assert [line["step"] for line in one] == list(range(1, len(one) + 1))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["protocol"] for line in two] == [line["protocol"] for line in one]
    # A pixel near a tie may go either way.
    assert [line["miou"] for line in two] == pytest.approx([line["miou"] for line in one], abs=0.01)
    best = [line["step"] for line in two if line["best"]][-1]
    assert TrainedModel.load(runs / "two" / name / BEST_FILE).selected == f"best on val at step {best}"


def test_one_process_goes_on_where_two_were_stopped(runs: Path, root: Path) -> None:
    run = runs / "two/stopped"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-00000002.adaptation.pt",
        "step-00000003.pt",
    ]
    with without_kinks():
        Trainer.resume(run, data=open_domains(root), device="cpu").fit()
    assert_equal_within_rounding(runs / "one/udas", run)
