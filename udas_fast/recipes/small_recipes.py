"""Recipes at a size that a CPU can train: those of `--small`, the demo and the README's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.errors import bad
from udas_fast.objectives import ObjectiveConfig
from udas_fast.recipes.recipe import Recipe, Stage
from udas_fast.recipes.translation import with_translation

STEPS = 600  # minutes on two CPU cores


def small(recipe: Recipe, *, size: tuple[int, int], steps: int = STEPS, batch_size: int = 4) -> Recipe:
    """Return ``recipe`` on a narrow ResNet-18 at output stride 4, from random weights, for ``steps`` of each network.

    All networks of it have this one architecture.

    Where there are several stages, the rounds of the later ones share a third of the steps and the first takes
    the rest; stages of equal length stay so, and those of more than two lengths keep their proportions. AdamW replaces
    SGD, whose published rates are for ImageNet weights; a stage that learns at a lower rate than AdaptSegNet's keeps
    the proportion. Self-training learns at a lower rate. LAB statistics take the place of a CycleGAN, which trains
    longer than all the rest. Images have their whole size, or that of the crop where the recipe draws a scale.

    Raises:
        InputError: fewer steps than rounds.
    """
    if recipe.translation is not None:
        recipe = with_translation(recipe, "lab")
    lengths: dict[str, int] = {}
    for network in dict.fromkeys(stage.network for stage in recipe.stages):
        stages = [stage for stage in recipe.stages if stage.network == network]
        lengths |= _lengths(recipe.name, stages, steps)
    return replace(
        recipe,
        stages=tuple(_small_stage(stage, lengths[stage.name]) for stage in recipe.stages),
        model=replace(recipe.model, backbone="resnet18", head=None, width=8, output_stride=4, drop_path=0.0),
        input=InputConfig(
            source=_small_geometry(recipe.input.source, size),
            target=_small_geometry(recipe.input.target, size),
            batch_size=batch_size,
            rare_classes=recipe.input.rare_classes,
        ),
        ema=recipe.ema and min(recipe.ema, 0.99),  # of a short run
    )


def _small_geometry(geometry: Geometry, size: tuple[int, int]) -> Geometry:
    low, high = geometry.scale
    return Geometry(size=size, scale=geometry.scale, crop=size if low < high else None, flip=True)


def _lengths(recipe: str, stages: Sequence[Stage], steps: int) -> dict[str, int]:
    """Return the steps of a round of each of the ``stages`` that train one network, by name."""
    rounds = sum(stage.rounds for stage in stages[1:])
    equal = len({stage.steps for stage in stages}) == 1
    least = rounds + 1 if equal else 3 * rounds
    if steps < max(1, least):
        raise bad("--steps", steps, f"at least {least} for {recipe}")
    later = steps // (rounds + 1) if equal else steps // 3 // max(1, rounds)
    lengths = {stage.name: later for stage in stages}
    if len({stage.steps for stage in stages}) > 2:
        whole = sum(stage.steps * stage.rounds for stage in stages)
        lengths = {stage.name: max(1, steps * stage.steps // whole) for stage in stages}
        longest = max(stages[1:], key=lambda stage: lengths[stage.name]).name
        lengths[longest] -= max(0, 1 - _rest(stages, lengths, steps))
    first = _rest(stages, lengths, steps)
    return lengths | {stages[0].name: first}


def _rest(stages: Sequence[Stage], lengths: dict[str, int], steps: int) -> int:
    """Return what of ``steps`` the stages after the first leave."""
    return steps - sum(lengths[stage.name] * stage.rounds for stage in stages[1:])


def _small_stage(stage: Stage, steps: int) -> Stage:
    # A method's own rate is for its stages alone; otherwise stages of SGD keep their proportions.
    proportional = stage.optimizer.name == "sgd" and stage.objective.small_lr == ObjectiveConfig.small_lr
    lr = stage.objective.small_lr * (stage.optimizer.lr / OptimizerConfig().lr if proportional else 1.0)
    optimizer = replace(
        stage.optimizer,
        name="adamw",
        lr=lr,
        weight_decay=1e-2,
        head_lr_mult=1.0,
        horizon=1.0,
        warmup=0.05,
        discriminator_lr=5e-4,
    )
    return replace(stage, steps=steps, optimizer=optimizer, objective=stage.objective.small(), model=None)
