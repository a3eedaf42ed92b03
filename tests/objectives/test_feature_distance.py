"""Feature distance against a float64 computation cell by cell, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.classes import CAMVID, CITYSCAPES
from udas_fast.data.domains import Domains
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model
from udas_fast.objectives import Batches
from udas_fast.objectives.feature_distance import THINGS, FeatureDistance, FeatureDistanceConfig
from udas_fast.objectives.online_self_training import OnlineSelfTraining, OnlineSelfTrainingConfig
from udas_fast.recipes import Recipe, get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_no_host_sync,
    assert_processes_agree,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    take_step,
    tiny,
)
from udas_fast.testing.steps import random_batches

NAMES = ("road", "sky", "person", "car")
SIZE = (32, 48)
CONFIG = OnlineSelfTrainingConfig(feature_distance=FeatureDistanceConfig(weight=0.3), auxiliary_weight=0.0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone="efficientnet_lite0", width=8, output_stride=8), 4).train()


@pytest.fixture
def cells() -> Batches:
    """Batches whose source labels are cells of 8 x 8 pixels with between 36 and 64 pixels of one class."""
    made = random_batches(4, SIZE)
    generator = torch.Generator().manual_seed(7)
    label = made.source.required_label
    for cell in (x for image in label for rows in image.split(8) for x in rows.split(8, 1)):
        number, least = torch.randint(0, 4, (2,), generator=generator).tolist()
        cell[: 4 + least] = number
        cell.view(8, 8)[7, 7] = 255
    return made


def _start(
    config: OnlineSelfTrainingConfig, model: nn.Module, names: tuple[str, ...] = NAMES
) -> OnlineSelfTraining:
    """The objective of a round whose network has learnt something since."""
    objective = config.build(4)
    objective.class_names = names
    objective.on_round_start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return objective


def _distance(now: nn.Module, first: nn.Module, x: Tensor, label: Tensor) -> tuple[Tensor, int]:
    """The mean distance over cells of which three quarters are persons or are cars, and their number."""
    with torch.no_grad():
        before = first(x)[-1]
    after, found = now(x)[-1], []
    for n, i, j in torch.cartesian_prod(*map(torch.arange, (2, 4, 6))).tolist():
        patch = label[n, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        if any((patch == thing).double().mean() >= 0.75 for thing in (2, 3)):
            found.append((after[n, :, i, j] - before[n, :, i, j]).square().sum().sqrt())
    return torch.stack(found).mean(), len(found)


def test_it_is_its_formula_in_one_backward_with_the_source_loss(model: nn.Module, cells: Batches) -> None:
    first = copy.deepcopy(model.backbone).double().eval()
    objective = _start(CONFIG, model)
    reference = copy.deepcopy(model).double()
    passes = backward_passes(objective, model, cells, make_context())

    x, label = cells.source.image.double() / 255, cells.source.required_label
    logits = F.interpolate(reference(x).primary, SIZE, mode="bilinear", align_corners=False)
    seg = F.cross_entropy(logits, label.long(), ignore_index=255)
    distance, count = _distance(reference.backbone, first, x, label)
    assert 5 < count < 40
    assert_same_gradients(passes[:1], [gradients(seg + 0.3 * distance, {"model": reference})])
    losses = take_step(objective, model, cells, make_context())
    torch.testing.assert_close(losses["features"].double(), distance.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["seg"].double(), seg.detach(), rtol=1e-4, atol=1e-6)


def test_it_is_zero_and_finite_where_nothing_is_a_thing_or_nothing_has_changed(
    model: nn.Module, cells: Batches
) -> None:
    model.eval()  # by the same statistics as the first one
    objective = _start(CONFIG, model, ("road", "sky", "tree", "wall"))
    assert take_step(objective, model, cells, make_context())["features"] == 0
    objective.class_names = NAMES
    objective.on_round_start(model)
    model.zero_grad()
    assert take_step(objective, model, cells, make_context())["features"] == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_first_backbone_is_frozen_and_part_of_the_state(model: nn.Module, cells: Batches) -> None:
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    objective = _start(CONFIG, model)
    objective.train()
    take_step(objective, model, cells, make_context())
    first = objective.feature_distance.first
    assert not any(module.training for module in first.modules())
    assert not any(p.requires_grad for p in first.parameters())
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert all(f"feature_distance.first.{name}" in objective.state_dict() for name in before)


def test_cells_of_maps_that_do_not_divide_the_image_are_the_nearest_pixels() -> None:
    distance = FeatureDistance(FeatureDistanceConfig(share=0.6), nn.Identity(), ("car", "road"))
    label = torch.ones(1, 5, 4, dtype=torch.uint8)
    label[:, :2] = 0
    assert distance.cells(label, (2, 1)).tolist() == [[[True], [False]]]  # rows 0 to 2 and 2 to 4


def test_the_classes_are_daformers() -> None:
    # Its configuration names Cityscapes' train ids.
    distance = FeatureDistance(FeatureDistanceConfig(), nn.Identity(), CITYSCAPES.names)
    assert distance.things == [6, 7, *range(11, 19)]
    assert [name for name in CAMVID.names if name in THINGS] == ["sign", "car", "pedestrian", "bicyclist"]
    for name in ("daformer", "mic"):
        found = get_recipe(name).stages[0].objective.feature_distance
        assert (found.weight, found.share) == (0.005, 0.75)


@pytest.mark.slow
def test_it_keeps_the_rules_for_steps() -> None:
    recipe = override(tiny(get_recipe("daformer")), ["stages.mixed.objective.feature_distance={weight: 1}"])
    assert_no_host_sync(recipe)
    assert_processes_agree(recipe)


def test_wrong_combinations_are_refused(model: nn.Module) -> None:
    with pytest.raises(
        InputError, match="feature_distance: found domain labelled, expected domain source or both"
    ):
        replace(CONFIG, domain="labelled")
    objective = CONFIG.build(4)
    with pytest.raises(
        InputError, match="network for feature_distance: found TinyNetwork, expected a backbone"
    ):
        objective.on_round_start(TinyNetwork())


def _trainer(root: Path, run: Path, recipe: Recipe, **options: object) -> Trainer:
    train, val = (open_dataset(f"camvid:{root}", split) for split in ("train", "val"))
    return Trainer(
        recipe,
        Domains(source=train, unlabelled=train, val=val),
        run_dir=run,
        device="cpu",
        log_every=1,
        **options,
    )


def test_a_run_is_refused_that_has_no_weights_no_things_or_another_network(
    camvid_root: Path, tmp_path: Path
) -> None:
    recipe = tiny(get_recipe("daformer"), 3, (32, 48))
    assert recipe.stages[0].objective.feature_distance is None  # small networks have random weights
    key = "stages.mixed.objective.feature_distance"
    recipe = override(recipe, [f"{key}={{}}"])
    with pytest.raises(
        InputError, match=f"stage mixed: found random first weights, expected --weights FILE, or {key}=null"
    ):
        _trainer(camvid_root, tmp_path / "run", recipe)
    with pytest.raises(
        InputError, match="feature_distance of stage mixed: found TinyNetwork, expected a backbone"
    ):
        _trainer(camvid_root, tmp_path / "run", recipe, model=TinyNetwork(11))
    with pytest.raises(InputError, match="classes of stage mixed: found cow, expected some of sky, building"):
        _trainer(camvid_root, tmp_path / "run", override(recipe, [f"{key}.classes=[cow]"]))
    own = build_model(recipe.model, 11)  # whose weights are its user's matter
    _trainer(camvid_root, tmp_path / "run", recipe, model=own).fit()
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(loss["features"] > 0 for loss in losses)
