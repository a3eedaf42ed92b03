"""Size, steps, batch size and learning rate of any recipe: proportions that stay, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udas_fast.data import Geometry
from udas_fast.errors import InputError
from udas_fast.memory import predict
from udas_fast.recipes import (
    Changes,
    InputConfig,
    Recipe,
    StreamBatchSize,
    all_recipes,
    get_recipe,
    override,
    select_stages,
    small,
    with_batch_size,
    with_lr,
    with_size,
    with_steps,
)

RECIPES = sorted(all_recipes())


def _of_networks(recipe: Recipe) -> dict[str, int]:
    """Optimisation steps of each network."""
    totals: dict[str, int] = {}
    for stage in recipe.stages:
        totals[stage.network] = totals.get(stage.network, 0) + stage.steps * stage.rounds
    return totals


@pytest.mark.parametrize("name", RECIPES)
def test_the_number_of_steps_that_a_recipe_has_changes_nothing(name: str) -> None:
    recipe = get_recipe(name)
    (total,) = set(_of_networks(recipe).values())
    assert with_steps(recipe, total) == recipe


def test_steps_keep_the_proportions_of_the_recipe() -> None:
    udas = with_steps(get_recipe("udas"), 1000)
    assert [(s.steps, s.rounds) for s in udas.stages] == [(600, 1), (200, 2)]  # 150,000 and 2 × 50,000
    cycada = with_steps(get_recipe("cycada"), 43)
    assert [s.steps for s in cycada.stages] == [23, 20]  # 115,000 and 100,000
    ddm = with_steps(get_recipe("ddm"), 42)
    assert _of_networks(ddm) == {"region": 42, "sample": 42, "student": 42}
    assert [s.steps for s in ddm.stages] == [12, 12, 12, *[10] * 9]  # the first takes what is left
    with pytest.raises(InputError, match="--steps: found 3, expected at least 4, one for each round of ddm"):
        with_steps(get_recipe("ddm"), 3)


stages = st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 4)), min_size=1, max_size=5)


@given(stages, st.integers(0, 50_000))
def test_steps_are_shared_by_proportion_for_any_stages(lengths: list[tuple[int, int]], more: int) -> None:
    plain = get_recipe("no_adaptation")
    parts = [
        replace(plain.stages[0], name=f"s{i}", steps=steps, rounds=rounds)
        for i, (steps, rounds) in enumerate(lengths)
    ]
    recipe = replace(plain, stages=tuple(parts))
    steps = sum(rounds for _, rounds in lengths) + more
    found = [stage.steps for stage in with_steps(recipe, steps).stages]
    assert min(found) >= 1
    total = sum(n * rounds for n, (_, rounds) in zip(found, lengths, strict=True))
    assert steps - lengths[0][1] < total <= steps  # whole rounds of the first stage
    if min(steps * n // recipe.steps for n, _ in lengths) >= 1:  # enough that no stage needs a step too many
        for n, (before, _) in list(zip(found, lengths, strict=True))[1:]:
            assert steps * before / recipe.steps - 1 < n <= steps * before / recipe.steps


@pytest.mark.parametrize("size", [(64, 128), (360, 640), (512, 1024), (720, 1280), (2000, 3000)])
@pytest.mark.parametrize("name", RECIPES)
def test_a_size_reaches_both_domains_and_its_crops_fit(name: str, size: tuple[int, int]) -> None:
    before = get_recipe(name).input
    after = with_size(get_recipe(name), size).input
    shown = {}
    for when, inputs in (("before", before), ("after", after)):
        shown[when] = [geometry.crop or geometry.size for geometry in (inputs.source, inputs.target)]
    for geometry in (after.source, after.target):
        assert geometry.size == size
        if geometry.crop is not None:
            assert geometry.crop[0] <= size[0]
            assert geometry.crop[1] <= size[1]
    if shown["before"][0] == shown["before"][1]:
        assert shown["after"][0] == shown["after"][1]
    assert (after.source.flip, after.source.scale) == (before.source.flip, before.source.scale)


def test_a_crop_that_fits_stays_and_another_shrinks_as_its_image_does() -> None:
    inputs = InputConfig(
        source=Geometry(size=(720, 1280), crop=(512, 1024)),
        target=Geometry(size=(512, 1024), crop=(400, 400)),
    )
    recipe = replace(get_recipe("advent"), input=inputs)
    after = with_size(recipe, (450, 900)).input
    assert after.source.crop == (320, 720)  # 512 · 450 / 720, 1024 · 900 / 1280
    assert after.target.crop == (400, 400)


@pytest.mark.slow
def test_regions_of_ddm_are_of_one_size_at_any_size() -> None:
    ddm = override(get_recipe("ddm"), ["model.backbone=resnet18", "model.width=4"])
    rounds = select_stages(
        ddm, [stage.name for stage in ddm.stages[:4]]
    )  # the fourth mixes unlabelled images
    always = override(rounds, ["stages.*.objective.pseudo_share=1"])
    assert len(predict(with_size(always, (90, 130)), num_classes=4)) == 4


def test_a_learning_rate_keeps_the_proportions_of_the_stages() -> None:
    rates = [stage.optimizer.lr for stage in with_lr(get_recipe("cycada"), 1e-3).stages]
    assert rates == [1e-3, pytest.approx(4e-5)]  # 2.5e-4 and 1e-5
    before = get_recipe("advent").stages[0].optimizer
    assert with_lr(get_recipe("advent"), 1e-3).stages[0].optimizer == replace(before, lr=1e-3)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="--lr: found .*, expected a number above 0"):
            with_lr(get_recipe("udas"), wrong)


def test_a_batch_size_is_of_all_streams_but_those_that_are_named() -> None:
    recipe = with_batch_size(get_recipe("adaptsegnet"), 4, StreamBatchSize(unlabelled=8))
    assert recipe.batch_sizes == {"source": 4, "unlabelled": 8}
    assert with_batch_size(recipe, None, StreamBatchSize(source=2)).batch_sizes == {
        "source": 2,
        "unlabelled": 8,
    }
    assert with_batch_size(recipe, 6).batch_sizes == {"source": 6, "unlabelled": 6}
    sentence = "--batch-size: stream of adaptsegnet: found 'labelled', expected one of source, unlabelled"
    with pytest.raises(InputError, match=sentence):
        with_batch_size(recipe, None, StreamBatchSize(labelled=2))


def test_changes_are_made_after_a_recipe_was_scaled_down() -> None:
    changes = Changes(small=(96, 192), steps=60, size=(64, 128), batch_size=2, lr=1e-3)
    by_hand = with_lr(
        with_batch_size(with_size(small(get_recipe("udas"), size=(96, 192), steps=60), (64, 128)), 2), 1e-3
    )
    assert changes.apply(get_recipe("udas")) == by_hand
    assert Changes(small=(96, 192)).apply(get_recipe("udas")) == small(
        get_recipe("udas"), size=(96, 192), steps=600
    )
    assert Changes().apply(get_recipe("udas")) == get_recipe("udas")


def test_changes_for_several_recipes_leave_out_streams_that_one_does_not_use() -> None:
    changes = Changes(batch_size=4, stream_batch_size=StreamBatchSize(source=2, unlabelled=8))
    assert changes.for_recipe(get_recipe("supervised")) == Changes(batch_size=4)
    assert changes.for_recipe(get_recipe("adaptsegnet")) == changes
