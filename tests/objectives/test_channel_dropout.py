"""Complementary channel dropout against a float64 computation, and UniMatch V2's rules for its draws."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast.data.strong_view import apply_strong
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model
from udas_fast.objectives import PrepareContext
from udas_fast.objectives.channel_dropout import ChannelDropoutConfig, draw_factors, scale_channels
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig, StudentView
from udas_fast.objectives.student_view import CutMixConfig
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_no_host_sync,
    assert_processes_agree,
    assert_same_gradients,
    assert_seeded,
    backward_passes,
    gradients,
    make_context,
    random_batches,
    take_step,
    tiny,
)

SIZE = (42, 56)
CONFIG = OnlineSelfTrainingConfig(
    domain="labelled",
    threshold=0.0,
    share="pixel",
    cut_mix=CutMixConfig(probability=1.0),
    channel_dropout=ChannelDropoutConfig(),
    auxiliary_weight=0.0,
    weight=0.6,
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_half_of_the_images_stay_whole_and_the_others_keep_complementary_halves() -> None:
    for n, whole in ((1, 0), (2, 1), (5, 2), (8, 4)):
        first = draw_factors(n, 400, ChannelDropoutConfig(), _generator())
        assert first.shape == (n, 400)
        kept = (first == 1).all(1)
        assert kept.sum() == whole
        halves = first[~kept]
        assert set(halves.unique().tolist()) == {0, 2}
        assert 0.4 < (halves == 0).float().mean() < 0.6
        assert torch.equal(2 - first[kept], first[kept])
    assert (draw_factors(4, 9, ChannelDropoutConfig(whole=0.0), _generator()) != 1).all()
    assert (draw_factors(4, 9, ChannelDropoutConfig(whole=1.0), _generator()) == 1).all()


def test_maps_of_equal_channels_share_their_factors() -> None:
    ones = {c: torch.ones(2, c, 1, 1) for c in (3, 5)}
    factors = draw_factors(2, 8, ChannelDropoutConfig(whole=0.0), _generator())
    first, second, third, fourth = scale_channels((ones[3], ones[5], ones[5], ones[3]), factors)
    assert torch.equal(first, fourth)
    assert torch.equal(second, third)
    assert torch.equal(first[..., 0, 0], factors[:, :3])
    assert torch.equal(second[..., 0, 0], factors[:, 3:])


@pytest.mark.parametrize(
    "network",
    [
        ModelConfig(backbone="dinov2_s", width=12),
        ModelConfig(backbone="mit_b0", head="deeplabv2", width=8),
    ],
    ids=["dinov2", "mit"],
)
def test_two_views_are_unimatch_v2s_formula(network: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(network, 4).train()
    reference = copy.deepcopy(model).double()
    teacher = copy.deepcopy(reference).eval()
    batches = random_batches(4, SIZE)
    objective = CONFIG.build(4)
    objective.on_round_start(model)
    views = objective.prepare_batch(batches, make_context(seed=5)).student
    passes = backward_passes(objective, model, batches, make_context(seed=5))

    one, two = views
    assert torch.equal(one.factors + two.factors, torch.full_like(one.factors, 2.0))
    assert not torch.equal(one.strong, two.strong)
    assert not torch.equal(one.boxes, two.boxes)
    with torch.no_grad():
        _, label = _up(teacher(batches.unlabelled.image.double() / 255).primary).max(1)
    expected = []
    for view in views:
        image, target = _seen(batches.unlabelled.image, label, view)
        maps, start, places = reference.backbone(image.double() / 255), 0, {}
        for count in dict.fromkeys(m.shape[1] for m in maps):
            places[count] = view.factors[:, start : start + count, None, None].double()
            start += count
        assert start == view.factors.shape[1]
        primary, _ = reference.decode(tuple(m * places[m.shape[1]] for m in maps))
        expected.append(gradients(0.3 * F.cross_entropy(_up(primary), target), {"model": reference}))
    assert_same_gradients(passes[1:], expected)


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def _seen(image: Tensor, label: Tensor, view: StudentView) -> tuple[Tensor, Tensor]:
    """The images of a view and their labels, by hand: a box of the other image, then the drawn changes."""
    image, label = image.clone(), label.clone()
    whole = image.clone(), label.clone()
    for i, (x0, y0, x1, y1) in enumerate(view.boxes.tolist()):
        for mixed, other in zip((image, label), whole, strict=True):
            mixed[i, ..., y0:y1, x0:x1] = other[1 - i, ..., y0:y1, x0:x1]
    return apply_strong(image, view.strong), label


def test_the_loss_is_the_mean_of_both_views() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone="dinov2_s", width=12), 4).train()
    objective = CONFIG.build(4)
    objective.on_round_start(model)
    losses = []
    context = make_context(seed=5)
    found = take_step(objective, model, random_batches(4, SIZE), _listening(context, losses))["strong"]
    torch.testing.assert_close(found, (losses[1] + losses[2]) / 0.6)


def _listening(context: PrepareContext, losses: list[Tensor]) -> PrepareContext:
    return replace(context, backward=lambda loss: losses.append(loss.detach()))


def test_networks_that_cannot_be_split_are_refused() -> None:
    assert CONFIG.requirements.backbone == "channel_dropout"
    with pytest.raises(
        InputError, match="network for channel_dropout: found TinyNetwork, expected a backbone"
    ):
        CONFIG.build(4).on_round_start(TinyNetwork())


def test_the_recipe_has_the_authors_numbers() -> None:
    recipe = get_recipe("unimatch_v2")
    (stage,) = recipe.stages
    method, optimizer = stage.objective, stage.optimizer
    assert (method.decay, method.threshold, method.share, method.domain) == (0.996, 0.95, "pixel", "labelled")
    assert method.channel_dropout.whole == 0.5
    # 5e-6 and 2e-4 for eight images of each kind; the rate is proportional to them.
    assert optimizer.lr * 8 / recipe.input.batch_size == pytest.approx(5e-6)
    assert optimizer.lr * optimizer.head_lr_mult * 4 == pytest.approx(2e-4)
    assert all(side % 14 == 0 for side in recipe.input.target.crop)


@pytest.mark.slow
def test_the_recipe_keeps_the_rules_for_steps() -> None:
    recipe = override(tiny(get_recipe("unimatch_v2")), ["stages.*.objective.threshold=0.21"])
    assert_seeded(recipe)
    assert_no_host_sync(recipe)
    assert_processes_agree(recipe)
