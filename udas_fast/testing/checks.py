"""Checks of a recipe's steps on random batches: graph replay, resume, skipped steps, YAML."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from unittest.mock import patch

import torch
from torch import Tensor

from udas_fast.engine.graph import WARM_UP
from udas_fast.errors import bad
from udas_fast.objectives import Losses
from udas_fast.ops import _check
from udas_fast.recipes import Recipe, recipe_from_dict
from udas_fast.testing.phases import RandomPhase, random_phase
from udas_fast.testing.tape import TapeCapture

STATE = "state that a step reads or changes must be a buffer or a submodule of the objective"


def assert_reads_its_yaml(recipe: Recipe) -> None:
    """Assert that the YAML of ``recipe`` gives the same recipe, as ``run.yaml`` has to."""
    found = recipe_from_dict(recipe.to_dict(), f"YAML of {recipe.name}")
    assert found == recipe, f"the YAML of {recipe.name} gives another recipe: {found}"


def assert_replays(recipe: Recipe, *replays: int) -> None:
    """Assert that a CUDA graph can stand for the steps of every stage of ``recipe``.

    A tape of operations takes the graph's place. Each stage replays some of its steps, and ends with the losses and
    state of a run that replays none.

    Args:
        recipe: a recipe with at least 5 steps a stage, such as :func:`tiny` makes.
        replays: expected number of replayed steps of each stage; by default at least one.
    """
    _require_steps(recipe, WARM_UP + 2)
    with patch.object(_check, "on_host", lambda value: False):  # thresholds are out of reach
        for index, stage in enumerate(recipe.stages):
            plain, recorded = random_phase(recipe, index), random_phase(recipe, index, capture=TapeCapture())
            losses = plain.run()
            try:
                found = recorded.run()
            except (RuntimeError, AttributeError) as error:
                raise AssertionError(f"{stage.name}: a step cannot be recorded: {error}") from error
            assert recorded.step.graph is not None
            made = recorded.step.graph.replays
            if replays:
                assert made == replays[index], (
                    f"{stage.name}: {made} steps replayed, expected {replays[index]}"
                )
            assert made, (
                f"{stage.name}: no step was replayed, as no {WARM_UP + 1} successive batches of prepare_batch have "
                "equal shapes and plain values; numbers that change in every step must be tensors"
            )
            hint = "training_step may depend on the shapes and plain values of its batch and on nothing else"
            _same_run(found, losses, recorded, plain, f"{stage.name}, replayed", hint)


def assert_resumes(recipe: Recipe) -> None:
    """Assert that every stage of ``recipe``, stopped in the middle, goes on to the same bits.

    The stage goes on from a network with other weights, which the checkpoint replaces, as after a restart.
    """
    _require_steps(recipe, 2)
    for index, stage in enumerate(recipe.stages):
        whole = random_phase(recipe, index)
        losses = [whole.take_step() for _ in range(stage.steps // 2)]
        saved = copy.deepcopy(whole.step.state_dict())
        losses = whole.run()
        again = random_phase(recipe, index, weights=1)
        again.step.load_state_dict(saved)
        _same_run(again.run(), losses, again, whole, f"{stage.name}, resumed", STATE)


def assert_rolls_back(recipe: Recipe) -> None:
    """Assert that a skipped step of any stage of ``recipe`` leaves no trace.

    One step has gradients that are not finite. The stage ends with the losses and state of a run in which that step
    did not happen.
    """
    _require_steps(recipe, 3)
    for index, stage in enumerate(recipe.stages):
        whole, found = (random_phase(recipe, index, max_bad_steps=1) for _ in range(2))
        for phase in (whole, found):
            for _ in range(stage.steps // 2):
                phase.take_step()
        whole.step.done += 1
        hooks = [p.register_hook(_not_finite) for p in found.step.parameters()]
        found.take_step()
        for hook in hooks:
            hook.remove()
        assert found.step.skipped, f"{stage.name}: a step with gradients of NaN was not skipped"
        _same_run(found.run(), whole.run(), found, whole, f"{stage.name}, after a skipped step", STATE)


def assert_equal(found: object, expected: object, where: str) -> None:
    """Assert that two nested structures are equal to the bit; NaN equals NaN.

    Messages begin with ``where`` and the path of the first difference.
    """
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), where
        assert found.keys() == expected.keys(), f"{where}: found {list(found)}, expected {list(expected)}"
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, Tensor):
        assert isinstance(found, Tensor), where
        assert found.shape == expected.shape, f"{where}: found {found.shape}, expected {expected.shape}"
        if not torch.equal(found.nan_to_num(-1.5), expected.nan_to_num(-1.5)):
            raise AssertionError(f"{where}: {_difference(found, expected)}")
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, (list, tuple)), where
        assert len(found) == len(expected), f"{where}: found {len(found)} values, expected {len(expected)}"
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    else:
        assert found == expected, f"{where}: found {found}, expected {expected}"


def _difference(found: Tensor, expected: Tensor) -> str:
    if found.dim() == 0:
        return f"found {found.item():.9g}, expected {expected.item():.9g}"
    most = (found.double() - expected.double()).abs().max().item()
    return f"found other numbers than expected, by up to {most:.3g}"


def _same_run(
    found: list[Losses],
    expected: list[Losses],
    found_phase: RandomPhase,
    expected_phase: RandomPhase,
    where: str,
    hint: str,
) -> None:
    """Assert that two runs end with the same losses and state."""
    try:
        assert_equal(found_phase.step.state_dict(), expected_phase.step.state_dict(), f"{where}: state")
        assert_equal(found, expected, f"{where}: losses")
    except AssertionError as error:
        raise AssertionError(f"{error} ({hint})") from None


def _not_finite(gradient: Tensor) -> Tensor:
    return gradient * torch.nan


def _require_steps(recipe: Recipe, least: int) -> None:
    for stage in recipe.stages:
        if stage.steps < least:
            raise bad(f"steps of stage {stage.name}", stage.steps, f"at least {least}")
