"""Class weights of a run: balanced by the labels that it learns from, or told, in the loss of labelled images only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from udas_fast import DataConfig, Trainer, distributed
from udas_fast.data import UserLoader, class_weights
from udas_fast.data.domains import Domains
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model, to_output
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.recipes import Recipe, all_recipes, get_recipe, override, small
from udas_fast.testing import TinyNetwork, make_context, random_batches


def recipe(name: str = "no_adaptation", *settings: str) -> Recipe:
    return override(
        small(get_recipe(name), size=(32, 48), steps=2, batch_size=2), ["model.width=4", *settings]
    )


def test_balanced_weights_are_enets_with_mean_1_over_classes_that_occur() -> None:
    counts = np.array([900, 0, 90, 10])
    raw = [1 / math.log(1.02 + share) for share in (0.9, 0.09, 0.01)]
    expected = [raw[0], 0, raw[1], raw[2]] / np.mean(raw)
    assert class_weights(counts) == pytest.approx(expected.tolist())
    with pytest.raises(InputError, match="class weights: found counts"):
        class_weights(np.zeros(3))


def test_the_loss_is_pytorchs_weighted_mean() -> None:
    torch.manual_seed(0)
    primary, auxiliary = torch.randn(2, 2, 4, 5, 6)
    label = torch.randint(0, 4, (2, 10, 12)).to(torch.uint8)
    label[0, :3] = 255
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5])

    def term(logits: torch.Tensor) -> torch.Tensor:
        full = F.interpolate(logits, (10, 12), mode="bilinear", align_corners=False)
        return F.cross_entropy(full, label.long(), weight=weights, ignore_index=255)

    found = segmentation_loss(to_output((primary, auxiliary)), label, 0.1, class_weights=weights)
    torch.testing.assert_close(found, term(primary) + 0.1 * term(auxiliary))


def test_processes_share_a_weighted_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, weights = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 3.0, 1.0])
    label = torch.stack([torch.zeros(8, 8), torch.randint(0, 3, (8, 8))]).to(torch.uint8)
    label[1, 4:] = 255
    whole = segmentation_loss(to_output(logits), label, 0, class_weights=weights)
    total = weights[label[label != 255].long()].sum()
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda _: total)
    own = [(to_output(logits[i : i + 1]), label[i : i + 1]) for i in (0, 1)]
    parts = [segmentation_loss(*one, 0, class_weights=weights) for one in own]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


METHODS = sorted(name for name, recipe in all_recipes().items() if recipe.trains == "segmentation")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_weighs_its_labelled_terms_and_no_other(name: str) -> None:
    torch.manual_seed(0)
    parts = any(s.objective.requirements.backbone for s in get_recipe(name).stages)  # run apart
    first = build_model(ModelConfig(backbone="resnet18", width=4), 4) if parts else TinyNetwork()
    chosen = small(get_recipe(name), size=(32, 48), steps=6, batch_size=2)
    weighed = set()
    for stage in chosen.stages:
        losses = []
        for weights in (None, torch.tensor([4.0, 0.1, 1.0, 2.0])):
            torch.manual_seed(1)
            model = copy.deepcopy(first)
            objective = stage.objective.build(4)
            objective.networks = dict.fromkeys(("region", "sample", "main", "student"), model)
            objective.class_weights = weights
            objective.on_round_start(model)
            context = make_context()
            batches = random_batches()
            if objective.labeller is not None and objective.labeller.config.labels == "disk":
                batches.unlabelled.label = batches.labelled.label.clone()
            prepared = objective.prepare_batch(batches, context)
            found = objective.training_step(model, prepared, context)
            losses.append({key: float(value) for key, value in found.items()})
        changed = {key for key in losses[0] if losses[0][key] != losses[1][key]}
        labelled = {key for key, value in losses[0].items() if key.startswith("seg") and value}
        # The feedback to a teacher is what its labels do to the loss of labelled images.
        assert changed - {"feedback"} == labelled, (stage.name, losses)
        weighed |= changed
    assert weighed


def test_a_run_counts_its_labels_tells_the_weights_and_records_them(
    camvid_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = camvid_folder("data")
    counts = np.zeros(256, np.int64)
    for path in (root / "labels/train").glob("*.png"):
        label = np.array(Image.open(path))
        label[label == 8] = 11
        Image.fromarray(label).save(path)
        counts += np.bincount(label.ravel(), minlength=256)
    chosen = recipe("no_adaptation", "class_weights=balanced")
    trainer = Trainer(chosen, DataConfig(f"camvid:{root}"), run_dir=tmp_path / "run", device="cpu")
    expected = class_weights(counts[:11])
    assert trainer.config.class_weights == expected
    assert f"class weights sky {expected[0]:.2f}, building" in trainer.describe()
    told = "NOTICE: class weights: 0 for classes that no label shows: car\n"
    assert told in capsys.readouterr().err
    run = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert run["recipe"]["class_weights"] == "balanced"
    assert run["run"]["class_weights"] == list(expected)
    trainer.fit()
    (tmp_path / "run/model.safetensors").unlink()
    assert Trainer.resume(tmp_path / "run", device="cpu").config.class_weights == expected


def test_wrong_weights_are_refused_before_any_work(camvid_root: Path, tmp_path: Path) -> None:
    data = DataConfig(f"camvid:{camvid_root}")
    with pytest.raises(InputError, match="class_weights: found 3 numbers, expected 11: sky, building"):
        Trainer(
            recipe("no_adaptation", "class_weights=[1, 2, 3]"), data, run_dir=tmp_path / "a", device="cpu"
        )
    with pytest.raises(InputError, match="class_weights"):
        recipe("no_adaptation", "class_weights=[1, -2]")
    with pytest.raises(InputError, match="class_weights: found 0 for every class, expected one above 0"):
        recipe("no_adaptation", "class_weights=[0, 0]")
    with pytest.raises(InputError, match="class_weights: found some for a translation"):
        override(get_recipe("cyclegan"), ["class_weights=balanced"])
    balanced = recipe("no_adaptation", "class_weights=balanced")
    loader = Domains(source=UserLoader([], ("road", "car")))
    with pytest.raises(
        InputError, match="found balanced with source images of a UserLoader, expected a number for"
    ):
        Trainer(balanced, loader, run_dir=tmp_path / "b", device="cpu")
