"""Labels of a round on disk, reports on them, fresh students, and runs that end on the way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from udas_fast import DataConfig, Trainer
from udas_fast.data import Unlabelled, open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.engine.recorder import Recorder
from udas_fast.inference import TrainedModel
from udas_fast.objectives.self_training import SelfTraining
from udas_fast.recipes import Recipe, get_recipe, override, select_stages, small
from udas_fast.testing import TinyNetwork
from udas_fast.training import labelling


def _recipe(*settings: str) -> Recipe:
    recipe = small(get_recipe("udas"), size=(32, 48), steps=6, batch_size=2)
    balanced = f"{OBJECTIVE}.pseudo_labels.threshold=balanced"  # teachers of one step are sure of nothing
    return override(recipe, ["model.width=4", "stages.adaptation.steps=1", balanced, *settings])


OBJECTIVE = "stages.self_training.objective"
DISK = (
    f"{OBJECTIVE}.pseudo_labels.labels=disk",
    f"{OBJECTIVE}.pseudo_labels.flip_view=true",
    f"{OBJECTIVE}.student=fresh",
    "stages.self_training.steps=2",
    "model.dropout=0.1",
    "ema=0.9",
)


def _trainer(root: Path, run: Path, *settings: str) -> Trainer:
    data = DataConfig(f"camvid:{root}", f"camvid:{root}", engine="torch")
    return Trainer(_recipe(*settings), data, run_dir=run, device="cpu", checkpoint_every=1)


@pytest.fixture(scope="module")
def whole(camvid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels on disk and fresh students, in one piece."""
    run = tmp_path_factory.mktemp("disk") / "whole"
    _trainer(camvid_root, run, *DISK).fit()
    return run


class Killed(Exception):
    """Stands for a power cut."""


def _kill_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Let the ``call``-th call of ``owner.name`` raise."""
    calls, real = [], getattr(owner, name)

    def counting(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(labelling, "label_image", 3), (Recorder, "step", 2), (SelfTraining, "on_round_end", 2)],
    ids=["while labelling", "within a round", "before a report"],
)
def test_killed_and_resumed_is_the_same_to_the_bit(
    owner: object,
    name: str,
    call: int,
    whole: Path,
    camvid_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "killed"
    trainer = _trainer(camvid_root, run, *DISK)
    with monkeypatch.context() as patch:
        _kill_at(patch, owner, name, call)
        with pytest.raises(Killed):
            trainer.fit()
    Trainer.resume(run, device="cpu").fit()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    for path in (whole / "pseudo_labels").glob("*/*"):
        assert path.read_bytes() == (run / path.relative_to(whole)).read_bytes(), path


def test_labels_on_disk_are_reported_whole(whole: Path) -> None:
    for phase in ("self_training.1", "self_training.2"):
        folder = whole / "pseudo_labels" / phase
        assert sorted(path.name for path in folder.glob("*.png")) == [f"{i:06d}.png" for i in range(4)]
        report = json.loads((folder / "report.json").read_text())
        assert report["phase"] == phase
        assert report["images"] == 4
        assert report["labelled"]
        assert np.array(report["histogram"]).shape == (11, 2, 64)
        assert np.array(report["histogram"]).sum() == 4 * 24 * 32
        assert len(report["threshold"]) == len(report["accuracy"]) == len(report["classes"]) == 11
        assert (whole / f"pictures/{phase}-pseudo.png").is_file()
    rounds = [(whole / f"pseudo_labels/self_training.{r}/summary.json").read_text() for r in (1, 2)]
    assert json.loads(rounds[0])["key"] != json.loads(rounds[1])["key"]  # another teacher


@pytest.mark.slow
def test_labels_made_in_each_step_are_reported_from_a_sample(camvid_root: Path, tmp_path: Path) -> None:
    train = open_dataset(f"camvid:{camvid_root}", "train")
    hidden = open_dataset(f"camvid:{camvid_root}", "train", labelled=False)
    reports = {}
    for name, unlabelled in (("known", Unlabelled(train)), ("unknown", hidden)):
        domains = Domains(source=train, unlabelled=unlabelled)
        Trainer(_recipe(), domains, run_dir=tmp_path / name, device="cpu").fit()
        path = tmp_path / name / "pseudo_labels/self_training.2/report.json"
        reports[name] = json.loads(path.read_text())
    known, unknown = reports["known"], reports["unknown"]
    assert known["histogram"] == unknown["histogram"]  # truth changes nothing
    assert (known["labelled"], unknown["labelled"]) == (True, False)
    assert unknown["accuracy"] is None
    assert 0 <= known["accuracy_all"] <= 1


@pytest.mark.slow
def test_hidden_labels_that_cannot_be_read_end_no_run(
    camvid_root: Path, camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    target = camvid_folder("target")
    source = open_dataset(f"camvid:{camvid_root}", "train")
    known = Unlabelled(open_dataset(f"camvid:{target}", "train"))  # which never opens them

    def report(name: str, *damaged: str) -> dict[str, object]:
        for file in damaged:
            (target / "labels/train" / file).write_bytes(b"no label")
        domains = Domains(source=source, unlabelled=known)
        recipe = _recipe("stages.self_training.rounds=1")
        Trainer(recipe, domains, run_dir=tmp_path / name, device="cpu").fit()
        assert (tmp_path / name / "pictures/self_training-pseudo.png").is_file()
        return json.loads((tmp_path / name / "pseudo_labels/self_training/report.json").read_text())

    one, none = report("one", "0003.png"), report("none", "0000.png")
    assert (one["labelled"], none["labelled"]) == (True, False)
    assert one["images"] == none["images"] == 4
    assert one["histogram"] == none["histogram"]


def test_an_image_that_turned_bad_is_left_out_of_the_report(
    camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = camvid_folder("data")
    recipe = _recipe("stages.self_training.rounds=1")
    data = DataConfig(f"camvid:{root}", f"camvid:{root}", engine="torch", max_bad_files=1)
    trainer = Trainer(recipe, data, run_dir=tmp_path / "run", device="cpu")
    (root / "images/train/0000.png").write_bytes(b"")
    trainer.fit()
    report = json.loads((tmp_path / "run/pseudo_labels/self_training/report.json").read_text())
    assert report["images"] == 3
    assert np.array(report["histogram"]).sum() == 3 * 24 * 32


def test_a_fresh_student_begins_from_initial_weights(camvid_root: Path, tmp_path: Path) -> None:
    still = ("stages.self_training.optimizer.lr=1e-20", "stages.self_training.rounds=1")
    trainer = _trainer(
        camvid_root, tmp_path / "fresh", "stages.self_training.objective.student=fresh", *still
    )
    trainer.fit()
    fresh = dict(trainer.networks.build("main", "self_training", "student").named_parameters())
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, fresh[name]), name
    other = dict(trainer.networks.build("main", "self_training.2", "student").named_parameters())
    assert not torch.equal(other["backbone.conv1.weight"], fresh["backbone.conv1.weight"])


@pytest.mark.slow
def test_a_fresh_student_of_a_users_own_network_begins_as_it_was_given(
    camvid_root: Path, tmp_path: Path
) -> None:
    still = (
        "stages.self_training.optimizer.lr=1e-20",
        "stages.self_training.rounds=1",
        f"{OBJECTIVE}.student=fresh",
    )
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}", engine="torch")
    model = TinyNetwork(11)
    given = copy.deepcopy(dict(model.named_parameters()))
    trainer = Trainer(
        _recipe(*still), data, model, run_dir=tmp_path / "own", device="cpu", checkpoint_every=1
    )
    trainer.fit()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, given[name]), name
    # A run that goes on is given a network of other weights, and still knows the first ones.
    saved = read_state(CheckpointFolder(tmp_path / "own/checkpoints").newest())
    first = saved["networks"]["first"]
    assert all(torch.equal(first[name], value) for name, value in given.items())


@pytest.mark.slow
def test_fresh_students_of_a_run_that_starts_from_another_begin_with_its_model(
    camvid_root: Path, tmp_path: Path
) -> None:
    source = override(small(get_recipe("no_adaptation"), size=(32, 48), steps=1), ["model.width=4"])
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}", engine="torch")
    # A network with the second head that UDAS needs.
    source = replace(source, model=_recipe().model)
    start = tmp_path / "start"
    Trainer(source, data, run_dir=start, device="cpu").fit()
    given = TrainedModel.load(start).model.state_dict()

    still = ("stages.self_training.optimizer.lr=1e-20", f"{OBJECTIVE}.student=fresh")
    whole = _recipe("stages.adaptation.optimizer.lr=0.1", "stages.self_training.rounds=1", *still)

    def trained(recipe: Recipe, name: str) -> Trainer:
        trainer = Trainer(recipe, data, run_dir=tmp_path / name, start=str(start), device="cpu")
        trainer.fit()
        return trainer

    for name, value in trained(whole, "whole").model.named_parameters():
        assert torch.equal(value, given[name]), name
    # Alone, the last stage has its teacher there, and a student of first weights.
    alone = trained(select_stages(whole, ["self_training"]), "alone")
    first = alone.networks.build("main", "self_training", "student").state_dict()
    assert torch.equal(alone.model.state_dict()["backbone.conv1.weight"], first["backbone.conv1.weight"])
