"""Virtual adversarial training against a float64 computation of its equations, and its extra passes in bf16."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.objectives import Batches
from udas_fast.objectives.vat import VatConfig, unit
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


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of softmax(p) to softmax(q) at every pixel."""
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)


def _length(x: Tensor) -> Tensor:
    return torch.stack([image.square().sum().sqrt() for image in x])[:, None, None, None]


def _perturbation(net: nn.Module, x: Tensor, d: Tensor, config: VatConfig) -> Tensor:
    """The equations of the paper on float64 images ``x``."""
    pixels = math.sqrt(3 * SIZE[0] * SIZE[1])
    p = _up(net(x)[0]).detach()
    d = (d / _length(d)).requires_grad_()
    moved = x + config.step * pixels * d
    (g,) = torch.autograd.grad(_kl(p, _up(net(moved)[0])).sum(), d)
    if config.adaptive:
        vertical = (x[:, :, 2:] - x[:, :, :-2]).square().sum((1, 2, 3))
        horizontal = (x[:, :, :, 2:] - x[:, :, :, :-2]).square().sum((1, 2, 3))
        radius = config.radius * 0.5 * (vertical + horizontal).sqrt()
    else:
        radius = torch.full((2,), config.radius * pixels).double()
    return radius[:, None, None, None] * g / _length(g)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"domain": "both", "radius": 0.3, "auxiliary_weight": 0.2},
        {"domain": "source", "radius": 0.1, "adaptive": False, "weight": 0.7, "step": 1e-2},
        {"entropy_weight": 0.06, "rise": 0.0},
    ],
)
def test_vat_is_its_equations(options: dict[str, Any], batches: Batches, tiny_net: TinyNetwork) -> None:
    config = VatConfig(**{"step": 1e-3, **options})
    objective, reference = config.build(CLASSES), copy.deepcopy(tiny_net).double()
    context = make_context(progress=0.1, seed=3)
    d = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)).double()
    passes = backward_passes(objective, tiny_net, batches, context)

    images = {"labelled": "l", "source": "s", "both": "sl"}[config.domain]
    expected = []
    for batch in [batches.source if name == "s" else batches.labelled for name in images]:
        heads = [
            F.cross_entropy(_up(logits), batch.label.long(), ignore_index=255)
            for logits in reference(context.normalize(batch.image).double())
        ]
        weight = config.auxiliary_weight
        expected.append(heads[0] + weight * heads[1] if weight else heads[0])
    x = context.normalize(batches.unlabelled.image).double()
    clean = _up(reference(x)[0])
    if config.entropy_weight:
        q = clean.softmax(1)
        expected.append(-config.entropy_weight * (q * q.log()).sum(1).mean() / math.log(CLASSES))
    r = _perturbation(reference, x, d, config)
    weight = config.weight * (0.1 / 0.4 if config.rise else 1.0)
    expected.append(weight * _kl(clean.detach(), _up(reference(x + r)[0])).mean())
    own = [gradients(loss, {"model": reference}) for loss in expected]
    # A finite difference of 1e-4 finds the direction, and magnifies float32's rounding.
    assert_same_gradients(passes, own, rounding=3e-5)


def test_the_direction_moves_predictions_more_than_chance(batches: Batches, tiny_net: TinyNetwork) -> None:
    x = make_context().normalize(batches.unlabelled.image)
    take_step(VatConfig().build(CLASSES), tiny_net, batches, make_context())
    r = tiny_net.inputs[-1] - x
    other = unit(torch.randn(x.shape, generator=torch.Generator().manual_seed(1))) * _length(r)
    with torch.no_grad():
        clean, adversarial, random = (_up(tiny_net(image)[0]) for image in (x, x + r, x + other))
    assert _kl(clean, adversarial).mean() > 3 * _kl(clean, random).mean()


def test_the_extra_pass_is_right_in_bf16(batches: Batches, tiny_net: TinyNetwork) -> None:
    x = make_context().normalize(batches.unlabelled.image)
    found = {}
    for precision in (torch.float32, torch.bfloat16):
        net = copy.deepcopy(tiny_net)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            take_step(VatConfig().build(CLASSES), net, batches, make_context())
        found[precision] = net.inputs[-1].float() - x
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32])
    d = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    exact = _perturbation(copy.deepcopy(tiny_net).double(), x.double(), d, VatConfig())
    alike = F.cosine_similarity(found[torch.float32].double().flatten(1), exact.flatten(1))
    assert alike.min() > 0.99


def test_only_the_plain_pass_moves_the_statistics(batches: Batches, tiny_net: TinyNetwork) -> None:
    plain = copy.deepcopy(tiny_net)
    take_step(VatConfig().build(CLASSES), tiny_net, batches, make_context())
    for images in (batches.labelled, batches.unlabelled):
        plain(make_context().normalize(images.image))
    assert torch.equal(tiny_net.norm.running_mean, plain.norm.running_mean)
    assert torch.equal(tiny_net.norm.running_var, plain.norm.running_var)
    assert tiny_net.norm.momentum == plain.norm.momentum


def test_an_image_of_one_colour_and_a_zero_gradient_stay_finite() -> None:
    assert torch.equal(unit(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["labelled", "both", "source"])
def test_the_recipe_resumes_and_skips_steps(domain: str) -> None:
    recipe = override(tiny(get_recipe("vat")), [f"stages.*.objective.domain={domain}"])
    assert_resumes(recipe)
    assert_rolls_back(recipe)
