"""Recipes at a size for CPUs: steps and learning rates of their stages, and what they keep of their input."""

from __future__ import annotations

import pytest

from udas_fast.data import Geometry
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe, small


def test_small_shares_the_steps_over_stages_and_rounds() -> None:
    recipe = small(get_recipe("udas"), size=(96, 192), steps=100)
    assert [(s.steps, s.rounds) for s in recipe.stages] == [(68, 1), (16, 2)]
    assert [s.steps for s in small(get_recipe("no_adaptation"), size=(96, 192), steps=100).stages] == [100]
    ddm = small(get_recipe("ddm"), size=(96, 192), steps=40)  # of each network
    assert {stage.steps for stage in ddm.stages} == {10}
    with pytest.raises(InputError, match="steps: found 5, expected at least 6"):
        small(get_recipe("udas"), size=(96, 192), steps=5)


def test_small_keeps_the_proportion_of_the_rates() -> None:
    names = ("adaptsegnet", "seg_uncertainty", "cycada")
    rates = {
        name: [s.optimizer.lr for s in small(get_recipe(name), size=(96, 192), steps=100).stages]
        for name in names
    }
    assert rates["adaptsegnet"] == [4e-3]  # for 2.5e-4
    assert rates["seg_uncertainty"] == pytest.approx([3.2e-3, 1.6e-3])  # 2e-4, 1e-4
    assert rates["cycada"] == pytest.approx([4e-3, 1.6e-4])  # 2.5e-4, 1e-5


def test_small_keeps_random_scales_and_rare_classes() -> None:
    unimatch, mic = (small(get_recipe(name), size=(48, 64)).input for name in ("unimatch_v2", "mic"))
    assert unimatch.target == Geometry(size=(48, 64), scale=(0.5, 2.0), crop=(48, 64), flip=True)
    assert mic.target == Geometry(size=(48, 64), flip=True)
    assert mic.rare_classes == get_recipe("mic").input.rare_classes
