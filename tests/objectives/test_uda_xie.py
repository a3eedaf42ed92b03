"""UDA of Xie et al. against a float64 computation of its equations."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.objectives import Batches
from udas_fast.objectives.cutout import CutOutConfig, boxes_to_pixels, draw_cutout
from udas_fast.objectives.uda_xie import UdaXieConfig, annealed
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_resumes,
    assert_rolls_back,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    take_step,
    tiny,
)

CLASSES, SIZE = 4, (32, 48)
ALWAYS = CutOutConfig(probability=1.0)


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def _decide(network: nn.Module) -> None:
    with torch.no_grad():
        network.primary.weight.mul_(6)


def _supervised(output: tuple[Tensor, Tensor], label: Tensor, eta: float | None, auxiliary: float) -> Tensor:
    """Mean cross-entropy over the labelled pixels whose p(y) is not above η."""
    p = _up(output[0]).softmax(1)
    counted = label != 255
    if eta is not None:
        counted = counted & (p.gather(1, label.long().clamp(max=3)[:, None])[:, 0] <= eta)
    losses = [
        F.cross_entropy(_up(logits), label.long().clamp(max=3), reduction="none")[counted].mean()
        for logits in output
    ]
    return losses[0] + auxiliary * losses[1] if auxiliary else losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"cut_out": None},
        {"domain": "both", "cut_out": ALWAYS, "weight": 0.6, "auxiliary_weight": 0.3},
        {"domain": "source", "annealing": "linear", "cut_out": None},
        {"annealing": "exp", "temperature": 1.5, "threshold": 0.0},
    ],
)
def test_uda_is_its_equations(options: dict[str, Any], batches: Batches, tiny_net: TinyNetwork) -> None:
    config = UdaXieConfig(**{"threshold": 0.5, **options})
    _decide(tiny_net)
    objective, reference = config.build(CLASSES), copy.deepcopy(tiny_net).double()
    made = objective.prepare_batch(batches, make_context(progress=0.3, seed=3))
    passes = backward_passes(objective, tiny_net, batches, make_context(progress=0.3, seed=3))
    assert torch.equal(made.augmented, make_context(seed=3).augment(batches.unlabelled.image))

    eta = None if config.annealing is None else annealed(config.annealing, 0.3, CLASSES)
    images = {"labelled": "l", "source": "s", "both": "sl"}[config.domain]
    expected = []
    for batch in [batches.source if name == "s" else batches.labelled for name in images]:
        output = reference(batch.image.double() / 255)
        expected.append(_supervised(output, batch.label, eta, config.auxiliary_weight))
    with torch.no_grad():
        weak = _up(reference(batches.unlabelled.image.double() / 255)[0])
    visible = torch.ones(2, 1, *SIZE) if made.visible is None else made.visible
    strong = _up(reference(made.augmented.double() / 255 * visible)[0]).log_softmax(1)
    p = weak.softmax(1)
    q = p ** (1 / config.temperature)
    q = q / q.sum(1, keepdim=True)
    sure = p.amax(1) >= config.threshold
    if config.threshold:
        assert 0.1 < sure.double().mean() < 0.9
    each = sure * (q * (q.log() - strong)).sum(1)
    expected.append(config.weight * each[visible[:, 0].bool()].mean())
    assert_same_gradients(passes, [gradients(loss, {"model": reference}) for loss in expected])


def test_annealing_lets_easy_pixels_in_over_time() -> None:
    for annealing in ("linear", "log", "exp"):
        eta = [annealed(annealing, t / 10, 19) for t in range(11)]
        assert eta == sorted(eta)
        assert 1 / 19 <= eta[0] < 0.07
        assert eta[-1] == pytest.approx(1, abs=0.01)
    assert annealed("exp", 0.5, 19) < annealed("linear", 0.5, 19) < annealed("log", 0.5, 19)
    assert annealed("log", 0.2, 2) == pytest.approx((1 - math.exp(-1)) / 2 + 0.5)


def test_annealing_leaves_out_what_is_learnt(batches: Batches, tiny_net: TinyNetwork) -> None:
    sure = copy.deepcopy(tiny_net)
    sure.primary.weight.data.zero_()
    sure.primary.bias.data.copy_(torch.tensor([9.0, 0, 0, 0]))
    easy = replace(batches.labelled, label=torch.zeros_like(batches.labelled.label))
    made = Batches(labelled=easy, unlabelled=batches.unlabelled)
    losses = {
        annealing: take_step(UdaXieConfig(annealing=annealing).build(CLASSES), sure, made, make_context(0.0))
        for annealing in ("linear", None)
    }
    assert losses["linear"]["seg"] == 0
    assert losses[None]["seg"] > 0


def test_only_the_augmented_pass_moves_the_statistics(batches: Batches, tiny_net: TinyNetwork) -> None:
    plain = copy.deepcopy(tiny_net)
    objective = UdaXieConfig(annealing="linear", cut_out=None).build(CLASSES)
    take_step(objective, tiny_net, batches, make_context(seed=2))
    for image in (batches.labelled.image, make_context(seed=2).augment(batches.unlabelled.image)):
        plain(make_context().normalize(image))
    assert torch.equal(tiny_net.norm.running_mean, plain.norm.running_mean)
    assert torch.equal(tiny_net.norm.running_var, plain.norm.running_var)


def test_a_box_of_cutout_has_its_area_and_is_the_images_own() -> None:
    images = torch.zeros(64, 3, 40, 80, dtype=torch.uint8)
    visible = draw_cutout(images, CutOutConfig(probability=0.5), make_context())
    hidden = (~visible).float().mean((1, 2, 3))
    assert 0.3 < (hidden > 0).float().mean() < 0.7
    assert hidden[hidden > 0].min() > 0.01
    assert hidden.max() < 0.41
    for mask in ~visible[hidden > 0][:, 0]:
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()  # one rectangle
    assert len(hidden.unique()) > 16


def test_boxes_are_half_open() -> None:
    inside = boxes_to_pixels(torch.tensor([[1, 2, 4, 3], [0, 0, 0, 0]], dtype=torch.int32), (4, 5))
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, 2, 1:4] = True
    assert torch.equal(inside, expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["domain=labelled"], ["domain=both", "annealing=exp"]])
def test_the_recipe_resumes_and_skips_steps(options: list[str]) -> None:
    recipe = tiny(get_recipe("uda_xie"))
    # On random images no network is as sure as the recipe asks.
    settings = [f"stages.*.objective.{option}" for option in [*options, "threshold=0.21"]]
    assert_resumes(override(recipe, settings))
    assert_rolls_back(override(recipe, settings))
