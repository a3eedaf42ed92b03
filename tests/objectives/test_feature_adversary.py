"""The feature-level adversary (ADDA, CyCADA's feature level) against a float64 computation of its step."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model
from udas_fast.objectives import Batches
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_replays,
    assert_resumes,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    tiny,
)

CLASSES, SIZE = 4, (32, 48)
FEATURES = AdversaryConfig(weights=(0.7, 0.3), space="feature", discriminator="pixel", width=6)


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone="resnet18", width=4, output_stride=4), CLASSES).train()
    for module in model.modules():  # weights at which answers differ
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def _answer(discriminator: nn.Module, features: Tensor) -> Tensor:
    """log of target over source of the two outputs, without dropout."""
    y = features
    for layer in discriminator:
        y = y if isinstance(layer, nn.Dropout2d) else layer(y)
    return y[:, 1] - y[:, 0]


def test_the_discriminators_see_the_features_of_both_heads(batches: Batches) -> None:
    model = _network()
    objective = AdaptationConfig(auxiliary_weight=0.2, adversary=FEATURES).build(CLASSES)
    assert objective.adversary is None  # until the network is known
    objective.on_round_start(model)
    objective.eval()
    for name in ("primary", "auxiliary"):
        for layer in getattr(objective.adversary, name):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    reference = copy.deepcopy(model).double()
    levels = copy.deepcopy([objective.adversary.primary, objective.adversary.auxiliary])
    levels = [level.double() for level in levels]
    made = Batches(source=batches.source, unlabelled=batches.unlabelled)
    passes = backward_passes(objective, model, made, make_context())

    source = reference.backbone(made.source.image.double() / 255)
    losses = [
        F.cross_entropy(
            F.interpolate(logits, SIZE, mode="bilinear", align_corners=False),
            made.source.label.long(),
            ignore_index=255,
        )
        for logits in reference.decode(source)
    ]
    expected = [gradients(losses[0] + 0.2 * losses[1], {"model": reference})]
    target = reference.backbone(made.unlabelled.image.double() / 255)
    answers = [_answer(level, target[i]) for level, i in zip(levels, (3, 2), strict=True)]
    fooled = sum(w * -F.logsigmoid(-answer).mean() for w, answer in zip((0.7, 0.3), answers, strict=True))
    expected.append(gradients(fooled, {"model": reference.backbone}))
    expected[1] = {name.replace("model.", "model.backbone."): grad for name, grad in expected[1].items()}
    told = sum(
        0.5 * -F.logsigmoid(-_answer(level, source[i].detach())).mean()
        + 0.5 * -F.logsigmoid(_answer(level, target[i].detach())).mean()
        for level, i in zip(levels, (3, 2), strict=True)
    )
    parts = {f"objective.adversary.{n}": d for n, d in zip(("primary", "auxiliary"), levels, strict=True)}
    expected.append(gradients(told, parts))
    assert_same_gradients(passes, expected)


@pytest.mark.slow
def test_cycada_has_its_feature_level() -> None:
    setting = "stages.adaptation.objective.adversary"
    settings = [f"{setting}.space=feature", f"{setting}.stride=1"]
    recipe = override(tiny(get_recipe("cycada")), settings)
    assert_resumes(recipe)
    assert_replays(override(tiny(get_recipe("cycada"), 8), settings))


def test_what_features_cannot_do_is_told() -> None:
    for name, value, expected in (
        ("discriminator", "patch", "pixel"),
        ("stride", 8, "1"),
        ("real", "ensemble", "primary"),
    ):
        with pytest.raises(
            InputError, match=f'{name}: found {value}, expected {expected} with space "feature"'
        ):
            replace(FEATURES, **{name: value})
    objective = AdaptationConfig(adversary=FEATURES).build(CLASSES)
    with pytest.raises(InputError, match="found TinyNetwork without a backbone of udas_fast"):
        objective.on_round_start(TinyNetwork())
