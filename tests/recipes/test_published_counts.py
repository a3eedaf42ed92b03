"""What each recipe trains, counted: parameters, groups and their rates, discriminators, and rates at iterations."""

from __future__ import annotations

import pytest
import torch

from udas_fast.engine.optim import build_optimizers, set_learning_rates
from udas_fast.models import CycleGenerators, build_model
from udas_fast.recipes import get_recipe

BACKBONE, HEADS = 42_500_160, 700_492 + 1_400_908  # DeepLabV2-ResNet-101 of 44,601,560 parameters, 19 classes
PATCH, SCALES, PIXEL = 2_781_121, 1_041_699, 142_082  # AdaptSegNet's, MRNet's and CyCADA's discriminator

# Stage: parameters of its discriminators; rates of backbone, heads and discriminators, and how much of them is left
# at an iteration, by the authors' command lines.
ADVERSARIAL = {
    ("adaptsegnet", "adaptation"): (2 * PATCH, (2.5e-4, 2.5e-3, 1e-4), 75_000, (1 - 75 / 250) ** 0.9),
    ("adaptsegnet_single", "adaptation"): (PATCH, (2.5e-4, 2.5e-3, 1e-4), 75_000, (1 - 75 / 250) ** 0.9),
    ("advent", "adaptation"): (2 * PATCH, (2.5e-4, 2.5e-3, 1e-4), 60_000, (1 - 60 / 250) ** 0.9),
    ("seg_uncertainty", "adaptation"): (2 * SCALES, (2e-4, 2e-3, 1e-4), 20_000, (1 - 20 / 100) ** 0.9),
    ("cycada", "adaptation"): (PIXEL, (1e-5, 1e-5, 1e-4), 60_000, 1.0),
    ("udas", "adaptation"): (2 * PATCH, (2.5e-4, 2.5e-3, 1e-4), 75_000, (1 - 75 / 250) ** 0.9),
}
PLAIN = {
    ("minent", "adaptation"): ((2.5e-4, 2.5e-3), 60_000, (1 - 60 / 250) ** 0.9),
    ("fda", "adaptation"): ((2.5e-4, 2.5e-3), 75_000, (1 - 75 / 150) ** 0.9),
    ("seg_uncertainty", "rectification"): (
        (1e-4, 1e-3),
        2_500,
        0.5 * (1 - 2.5 / 100) ** 0.9,
    ),  # of 5,000 warm-up
    ("no_adaptation", "source"): ((2.5e-4, 2.5e-3), 0, 1.0),
    ("udas", "self_training"): ((2.5e-4, 2.5e-3), 0, 1.0),
    ("ddm", "region_1"): ((2.5e-4, 2.5e-3), 20_000, 0.5**0.9),  # of 40,000
    ("ddm", "student_4"): ((2.5e-4, 2.5e-3), 20_000, 0.5**0.9),
}
CASES = {**ADVERSARIAL, **{key: (0, *values) for key, values in PLAIN.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_parameters_groups_and_rates(name: str, stage: str) -> None:
    discriminators, rates, iteration, left = CASES[name, stage]
    recipe = get_recipe(name)
    (chosen,) = (s for s in recipe.stages if s.name == stage)
    with torch.device("meta"):
        model = build_model(recipe.model, 19)
        objective = chosen.objective.build(19)
        optimizers = build_optimizers(model, objective.discriminator_parameters(), chosen.optimizer)
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    counts = [sum(p.numel() for p in group["params"]) for group in groups]
    assert counts == [BACKBONE, HEADS, *([discriminators] if discriminators else [])]
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    assert groups[0]["weight_decay"] == groups[1]["weight_decay"] == (1e-4 if name == "ddm" else 5e-4)
    set_learning_rates(optimizers, iteration / chosen.steps, chosen.optimizer)
    assert [group["lr"] for group in groups] == pytest.approx([rate * left for rate in rates])


def test_cyclegan_counts_and_rates() -> None:
    (stage,) = get_recipe("cyclegan").stages
    with torch.device("meta"):
        model = CycleGenerators()
        objective = stage.objective.build(19)
        optimizers = build_optimizers(model, objective.discriminator_parameters(), stage.optimizer)
    (generators,), (discriminators,) = (optimizer.param_groups for optimizer in optimizers.values())
    assert sum(p.numel() for p in generators["params"]) == 2 * 11_378_179
    assert sum(p.numel() for p in discriminators["params"]) == 2 * 2_764_737
    set_learning_rates(optimizers, 0.75, stage.optimizer)  # constant for one half, then down to zero
    assert generators["lr"] == discriminators["lr"] == pytest.approx(1e-4)
    assert generators["betas"] == discriminators["betas"] == (0.5, 0.999)
