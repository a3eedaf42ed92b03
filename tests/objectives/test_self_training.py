"""Self-training's options: geometric views, thresholds, consistency, labels on disk, fresh students, reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from take_step import take_step
from torch import nn
from udas_fast.objectives.labelling import quality

from udas_fast import Trainer
from udas_fast.data import Batch, Unlabelled, open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.engine.recorder import Recorder
from udas_fast.errors import InputError
from udas_fast.objectives import Step, labelling
from udas_fast.objectives.mixing import NO_MIXING, MixingConfig
from udas_fast.objectives.self_training import SelfTraining, SelfTrainingConfig, balanced_thresholds
from udas_fast.recipes import Recipe, get_recipe, override, small

PLAIN = MixingConfig(translate="none", augment=False)


def _pointwise() -> nn.Module:
    """Equivariant under every movement of pixels."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 1)


def _smooth() -> Batch:
    y, x = torch.meshgrid(torch.arange(36.0), torch.arange(52.0), indexing="ij")
    waves = [torch.cos(x / 7 + y / 9), torch.cos(y / 6 - 1), torch.sin(x / 8 + 2)]
    image = ((torch.stack(waves) + 1) * 127).to(torch.uint8)[None]
    return Batch(torch.cat([image, image.flip(-2)]), None, ["a", "b"])


def _labels(config: SelfTrainingConfig, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    objective = config.build(4)
    objective.start(_pointwise())
    batch = _smooth()
    pseudo = objective.label(
        *objective.look(objective.photometric_views(batch, step.augment), step.normalize),
        batch.image.shape[-2:],
        0.0,
    )
    return pseudo.label, pseudo.confidence


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_geometric_views_come_back_to_their_place(make_step: Callable[..., Step], reduce: str) -> None:
    plain = SelfTrainingConfig(views=1, reduce=reduce)
    label, confidence = _labels(plain, make_step())
    mirrored = _labels(replace(plain, flip_view=True), make_step())
    assert torch.equal(label, mirrored[0])
    assert torch.equal(confidence, mirrored[1])
    scaled = _labels(replace(plain, flip_view=True, scales=(0.75, 1.5)), make_step())
    # Resampling waves of 1/6 a pixel: about (1/6)² / 8 for each of two interpolations, at logits of this size.
    assert (scaled[1] - confidence).abs().max() < 0.02
    assert (scaled[0] == label).float().mean() > 0.99


def test_views_are_counted(
    tiny_net: nn.Module, batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    objective = SelfTrainingConfig(views=2, flip_view=True, scales=(1.25,)).build(4)
    objective.start(tiny_net)
    step = make_step()
    photometric = objective.photometric_views(batches["unlabelled"], step.augment)
    logits, flips = objective.look(photometric, step.normalize)
    assert flips == [
        False,
        False,
        True,
        False,
        True,
    ]  # two photometric, then MRNet's three beside the identity
    assert [tuple(view.primary.shape[-2:]) for view in logits] == [(8, 12)] * 3 + [(10, 15)] * 2
    with pytest.raises(ValueError, match="views: found 17 with scales and flips, expected at most 16"):
        SelfTrainingConfig(views=12, flip_view=True, scales=(0.5, 2.0))


def test_the_teacher_sees_photometric_views_and_the_student_augmented_images(
    tiny_net: nn.Module, batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    objective = SelfTrainingConfig(views=2, mixing=NO_MIXING).build(4)
    objective.start(tiny_net)
    step, target = make_step(), batches["unlabelled"]
    photometric = objective.photometric_views(target, lambda image: 255 - image)
    (plain, negative), _ = objective.look(photometric, step.normalize)
    assert torch.equal(plain.primary, objective.teacher(step.normalize(target.image))[0])
    assert torch.equal(negative.primary, objective.teacher(step.normalize(255 - target.image))[0])

    objective = SelfTrainingConfig(views=1, mixing=NO_MIXING).build(4)
    objective.start(tiny_net)
    take_step(objective, tiny_net, batches, make_step(seed=3))
    again = make_step(seed=3)
    seen = [again.augment(target.image), batches["source"].image, again.augment(batches["labelled"].image)]
    assert all(torch.equal(a, again.normalize(b)) for a, b in zip(tiny_net.inputs, seen, strict=True))
    assert not torch.equal(seen[0], target.image)


@pytest.mark.parametrize(("portion", "cap"), [(0.5, 0.9), (0.2, 0.75), (1.0, 0.9)])
def test_balanced_thresholds_equal_sorting_all_confidences(portion: float, cap: float) -> None:
    rng = np.random.default_rng(0)
    histogram = torch.zeros(4, 2, 64, dtype=torch.int64)
    expected = []
    for c, power in enumerate((0.05, 1, 3)):
        values = np.sort(rng.random(777) ** power)[::-1]
        last_kept = values[int(np.ceil(portion * len(values))) - 1]
        expected.append(min(np.floor(64 * last_kept) / 64, cap))
        bins, kept = np.floor(64 * values).astype(int), rng.random(777) < 0.5
        for part in (0, 1):
            histogram[c, part] = torch.from_numpy(np.bincount(bins[kept == part], minlength=64))
    torch.testing.assert_close(
        balanced_thresholds(histogram, portion, cap), torch.tensor([*expected, cap], dtype=torch.float32)
    )


def test_consistency_is_zero_where_the_student_sees_what_the_teacher_saw(
    batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    config = SelfTrainingConfig(
        views=1, flip_view=True, consistency_weight=0.5, temperature=0.5, augment=False, mixing=PLAIN
    )
    model = _pointwise()
    objective = config.build(4)
    objective.start(model)
    same = take_step(objective, model, batches, make_step())
    assert same["consistency"].abs() < 1e-6  # float32 sums of p·log(p/p), mirrored back exactly
    with torch.no_grad():
        model.bias += torch.tensor([0.5, 0, 0, -0.5])
    logits = model(batches["unlabelled"].image.float() / 255).double()
    teacher = objective.teacher(batches["unlabelled"].image.float() / 255).double()
    p, q = ((x / 0.5).softmax(1) for x in (teacher, logits))
    expected = (p * (p / q).log()).sum(1).mean()
    moved = take_step(objective, model, batches, make_step())
    torch.testing.assert_close(moved["consistency"].double(), expected, rtol=1e-4, atol=1e-7)


def test_quality_by_hand() -> None:
    histogram = np.zeros((3, 2, 64), np.int64)
    histogram[0, 0, 60], histogram[0, 1, 10], histogram[1, 0, 63] = 6, 2, 4
    counts = np.array([[3, 1, 0], [2, 2, 0], [0, 1, 0]])  # one kept pixel of class 0 has no truth
    assert quality(histogram, counts) == {
        "kept_share": [0.75, 1.0, None],
        "kept_share_all": 10 / 12,
        "accuracy": [3 / 5, 2 / 4, None],
        "accuracy_all": 5 / 9,
        "labelled": True,
    }
    assert quality(histogram, None)["accuracy"] is None


def _recipe(*settings: str) -> Recipe:
    recipe = small(get_recipe("udas"), size=(32, 48), steps=6, batch_size=2)
    return override(recipe, ["model.width=4", "stages.adaptation.steps=1", *settings])


DISK = (
    *(
        "stages.self_training.objective.labels=disk",
        "stages.self_training.objective.student=fresh",
        "ema=0.9",
    ),
    *("stages.self_training.objective.flip_view=true", "stages.self_training.steps=2", "model.dropout=0.1"),
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


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(labelling, "label_image", 3), (Recorder, "step", 2), (SelfTraining, "finish", 2)],
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
    fresh = dict(trainer.networks.build("self_training", "student").named_parameters())
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, fresh[name]), name
    other = dict(trainer.networks.build("self_training.2", "student").named_parameters())
    assert not torch.equal(other["backbone.conv1.weight"], fresh["backbone.conv1.weight"])
    with pytest.raises(
        InputError, match="stage self_training: found a fresh student of the user's own network"
    ):
        Trainer(
            trainer.recipe,
            trainer.domains,
            nn.Conv2d(3, 11, 1),
            run_dir=tmp_path / "own",
            device="cpu",
        )
