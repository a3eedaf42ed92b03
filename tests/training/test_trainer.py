"""The trainer with a user's own network and datasets, and what it refuses before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from udas_fast import Trainer
from udas_fast.data import CAMVID, Geometry, Sample, SegmentationDataset, open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.errors import InputError
from udas_fast.inference import TrainedModel
from udas_fast.models import build_model
from udas_fast.recipes import InputConfig, Recipe, Stage, get_recipe, override, small
from udas_fast.training.run_folder import locked

SIZE = (32, 48)


class OneHead(nn.Module):
    """A user's network without an auxiliary head."""

    def __init__(self, num_classes: int = 11) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Conv2d(6, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


class Untouchable(SegmentationDataset):
    """A target that may be named but not looked at."""

    name, classes = "untouchable", CAMVID

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("a target image was read")


def _recipe(name: str, steps: int = 4) -> Recipe:
    return override(small(get_recipe(name), size=SIZE, steps=steps, batch_size=2), ["model.width=4"])


def _domains(root: Path) -> Domains:
    train, val = (open_dataset(f"camvid:{root}", split) for split in ("train", "val"))
    return Domains(source=train, labelled=train, unlabelled=train, val=val)


def test_a_users_network_with_one_head(camvid_root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OneHead()
    before = model.head.weight.detach().clone()
    trainer = Trainer(
        _recipe("no_adaptation"), _domains(camvid_root), model, run_dir=tmp_path / "run", device="cpu"
    )
    scores = trainer.fit()
    assert not torch.equal(model.head.weight, before)
    assert scores["source"].matrix.sum() > 0

    again = OneHead()
    trained = TrainedModel.load(tmp_path / "run", torch.device("cpu"), again)
    assert torch.equal(again.head.weight, model.head.weight)
    image = open_dataset(f"camvid:{camvid_root}", "val")[0].image
    label, confidence = trained.predict(image)
    ours, _ = trainer.predict(image)
    assert (label == ours).all()
    assert label.shape == image.shape[:2]
    assert (confidence >= 1 / 11).all()
    with pytest.raises(InputError, match="a network of your own; pass it as `model`"):
        TrainedModel.load(tmp_path / "run", torch.device("cpu"))


def test_a_recipe_that_needs_two_heads_says_so_before_any_work(camvid_root: Path, tmp_path: Path) -> None:
    what = r"the agreement of the heads \(agreement, which null leaves out\)"
    for name in ("udas", "seg_uncertainty"):
        with pytest.raises(
            InputError, match=f"model OneHead: found one head, expected an auxiliary head.*{what}"
        ):
            Trainer(
                _recipe(name, 9), _domains(camvid_root), OneHead(), run_dir=tmp_path / "run", device="cpu"
            )
    recipe = override(_recipe("minent"), ["stages.adaptation.objective.entropy.weights=[0, 0.001]"])
    with pytest.raises(InputError, match="entropy.weights, of which the primary head's is 0"):
        Trainer(recipe, _domains(camvid_root), OneHead(), run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_no_adaptation_never_reads_a_target_image(camvid_root: Path, tmp_path: Path) -> None:
    domains = Domains(
        source=open_dataset(f"camvid:{camvid_root}", "train"),
        labelled=Untouchable(),
        unlabelled=Untouchable(),
    )
    trainer = Trainer(_recipe("no_adaptation"), domains, run_dir=tmp_path / "run", device="cpu")
    assert trainer.fit() == {}
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4


def test_void_is_never_trained_on_nor_scored(camvid_root: Path, tmp_path: Path) -> None:
    trainer = Trainer(_recipe("no_adaptation"), _domains(camvid_root), run_dir=tmp_path / "run", device="cpu")
    scores = trainer.fit()["source"]
    labels = [open_dataset(f"camvid:{camvid_root}", "val")[i].label for i in range(2)]
    scored = sum(int((label != 255).sum()) for label in labels)
    assert scored < sum(label.size for label in labels)
    assert scores.matrix.sum() == scored


def test_objects_have_to_be_given_again(camvid_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(_recipe("no_adaptation"), _domains(camvid_root), run_dir=run, device="cpu").fit()
    with pytest.raises(InputError, match="its data began as objects"):
        Trainer.resume(run, device="cpu")
    resumed = Trainer.resume(run, data=_domains(camvid_root), device="cpu").fit()
    stored = json.loads((run / "scores.json").read_text())["phases"]["source"]
    assert resumed["source"].to_dict()["miou"] == stored["miou"]


def test_weights_that_a_checkpoint_has_need_not_be_there_any_more(camvid_root: Path, tmp_path: Path) -> None:
    start, data = tmp_path / "start.pth", _domains(camvid_root)
    fresh = override(_recipe("udas", 6), ["stages.self_training.objective.student=fresh"])
    torch.save(build_model(fresh.model, 11).state_dict(), start)
    plain, run = _recipe("no_adaptation", 1), tmp_path / "run"
    Trainer(plain, data, run_dir=run, weights=str(start), device="cpu").fit()
    Trainer(fresh, data, run_dir=tmp_path / "fresh", weights=str(start), device="cpu")
    CheckpointFolder(tmp_path / "fresh/checkpoints").save({}, 1)
    start.unlink()
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    Trainer.resume(run, data=data, device="cpu").fit()
    assert (run / "model.safetensors").read_bytes() == whole
    with pytest.raises(InputError, match=r"start\.pth"):  # each round's student begins with them
        Trainer.resume(tmp_path / "fresh", data=data, device="cpu")


def test_a_complete_run_whose_scores_were_lost_is_still_one(camvid_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(_recipe("no_adaptation", 1), _domains(camvid_root), run_dir=run, device="cpu").fit()
    (run / "scores.json").write_text("{")
    with pytest.raises(InputError, match="scores.json: damaged"):
        Trainer.resume(run, data=_domains(camvid_root), device="cpu").fit()
    (run / "scores.json").unlink()
    assert Trainer.resume(run, data=_domains(camvid_root), device="cpu").fit() == {}


def test_a_loss_that_explodes_is_named_and_never_saved(camvid_root: Path, tmp_path: Path) -> None:
    recipe = override(_recipe("no_adaptation", 8), ["stages.source.optimizer.lr=1e15"])
    trainer = Trainer(
        recipe, _domains(camvid_root), run_dir=tmp_path / "run", device="cpu", checkpoint_every=1
    )
    with pytest.raises(
        InputError, match=r"loss 'seg' is \S+ at step \d \(source\), on source \d{4}"
    ) as caught:
        trainer.fit()
    fault = json.loads((tmp_path / "run/fault.json").read_text())
    assert (fault["term"], fault["phase"]) == ("seg", "source")
    assert ", ".join(fault["samples"]["source"]) in str(caught.value)
    newest = CheckpointFolder(tmp_path / "run/checkpoints").newest()
    assert newest is not None
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert read_state(newest)["step"]["done"] == last["step"] + 1


def test_one_process_at_a_time_in_a_folder(camvid_root: Path, tmp_path: Path) -> None:
    def start() -> Trainer:
        recipe, data = _recipe("no_adaptation", 1), _domains(camvid_root)
        return Trainer(recipe, data, run_dir=tmp_path / "run", device="cpu")

    trainer = start()
    with locked(tmp_path / "run"):
        for begin in (start, trainer.fit):
            with pytest.raises(InputError, match="run folder .*: found a process that trains there"):
                begin()
    with locked(tmp_path / "run"):  # free again
        pass


def test_domains_of_other_classes_are_refused(camvid_root: Path, tmp_path: Path) -> None:
    domains = Domains(
        source=open_dataset("streets:sim", "train", size=SIZE), unlabelled=_domains(camvid_root).unlabelled
    )
    with pytest.raises(
        InputError, match="classes: found 19 in source streets-sim and 11 in .*, expected the same"
    ):
        Trainer(_recipe("udas", 9), domains, run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("udas", DataConfig(target="streets:real"), "--source: found none"),
        ("udas", DataConfig(source="streets:sim"), "--target: found none"),
        ("supervised", DataConfig(target="streets:real"), "--num-labels: found 0"),
    ],
)
def test_a_domain_that_is_missing_is_named(
    name: str, data: DataConfig, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        Trainer(_recipe(name, 9), data, run_dir=tmp_path / "run", device="cpu")


def test_an_unwritable_run_folder_is_named(camvid_root: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Trainer(_recipe("no_adaptation"), _domains(camvid_root), run_dir=blocked / "run", device="cpu")


def test_labelled_target_images_take_the_sources_geometry_where_they_are_mixed(camvid_root: Path) -> None:
    inputs = InputConfig(source=Geometry(size=(32, 64)), target=Geometry(size=SIZE), batch_size=1)

    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        recipe = replace(get_recipe(name), input=inputs)
        geometries = recipe.geometries(recipe.stages[-1])
        loaders = _domains(camvid_root).loaders(geometries, inputs, seed=0, phase="p")
        return {name: tuple(next(loader.batches()).image.shape[-2:]) for name, loader in loaders.items()}

    assert shapes("udas") == {"source": (32, 64), "labelled": (32, 64), "unlabelled": SIZE}
    assert shapes("supervised") == {"labelled": SIZE}


def test_stages_are_named_by_round(camvid_root: Path, tmp_path: Path) -> None:
    recipe = _recipe("udas", 9)
    assert all(isinstance(stage, Stage) for stage in recipe.stages)
    trainer = Trainer(recipe, _domains(camvid_root), run_dir=tmp_path / "run", device="cpu")
    assert "adaptation, self_training.1, self_training.2; 9 steps" in trainer.describe()


def test_images_too_small_for_the_discriminators_are_told_before_any_work(
    camvid_root: Path, tmp_path: Path
) -> None:
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}")
    recipe = override(small(get_recipe("adaptsegnet"), size=(48, 64), steps=2), ["model.width=4"])

    def run(name: str, *settings: str) -> Trainer:
        return Trainer(override(recipe, settings), data, run_dir=tmp_path / name, device="cpu")

    with pytest.raises(
        InputError, match=r"size of unlabelled images: found \[24, 64\], expected sides of 32 in stage adapt"
    ):
        run("small", "input.target.size=[24,64]")
    objective = "stages.adaptation.objective"
    with pytest.raises(
        InputError, match=r"size of source images: found \[48, 40\], expected sides of 63 in stage"
    ):
        run("stride", "input.source.crop=[48,40]", f"{objective}.adversary.stride=2")
    with pytest.raises(InputError, match="expected sides of 64 in stage"):
        run("scales", f"{objective}.adversary.scales=4")
    assert not any(tmp_path.iterdir())
    run("least", "input.target.size=[32,64]").fit()
    run("pixel", "input.target.size=[24,64]", f"{objective}.adversary.discriminator=pixel")


def test_a_wrong_number_of_a_run_is_told(camvid_root: Path, tmp_path: Path) -> None:
    data = DataConfig(f"camvid:{camvid_root}")
    recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=2)
    with pytest.raises(InputError, match=r"Trainer: seed: .* greater than or equal to 0 \(found -1\)"):
        Trainer(recipe, data, run_dir=tmp_path / "run", device="cpu", seed=-1)


def test_a_run_begins_with_all_but_the_head_of_a_model_of_other_classes(
    camvid_root: Path, tmp_path: Path
) -> None:
    recipe, data = _recipe("no_adaptation", 1), DataConfig(f"camvid:{camvid_root}")
    Trainer(recipe, data, run_dir=tmp_path / "camvid", device="cpu").fit()
    weights = tmp_path / "camvid/model.safetensors"

    def start(name: str, **options: object) -> Trainer:
        streets = DataConfig("streets:sim")
        return Trainer(recipe, streets, run_dir=tmp_path / name, device="cpu", **options)

    with pytest.raises(InputError, match="found 11 classes in .*, expected 19 classes; --reset-head"):
        start("whole", weights=str(weights))
    with pytest.raises(
        InputError, match="--weights of its model.safetensors with --reset-head takes all but"
    ):
        start("from", start=str(tmp_path / "camvid"))
    with pytest.raises(InputError, match="--reset-head: found no --weights"):
        start("none", reset_head=True)
    trainer = start("reset", weights=str(weights), reset_head=True)
    assert "head of 11 classes left out, reset: auxiliary.* (8), primary.* (8)" in trainer.describe()
    backbone = TrainedModel.load(tmp_path / "camvid").model.backbone.state_dict()
    assert all(torch.equal(t, backbone[name]) for name, t in trainer.model.backbone.state_dict().items())
    assert "reset_head: true" in (tmp_path / "reset/run.yaml").read_text()
