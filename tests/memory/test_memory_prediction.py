"""Predictions against the same step on real tensors and against arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.errors import InputError
from udas_fast.memory import predict
from udas_fast.memory.prediction import _forwards_make_activations, _stage_peak
from udas_fast.memory.tracker import BLOCK, MemoryTracker
from udas_fast.models import CHECKPOINTING, build_model
from udas_fast.objectives import Losses, StepContext
from udas_fast.objectives.supervised import Supervised
from udas_fast.recipes import Recipe, get_recipe, list_recipes, override, small
from udas_fast.recipes.cyclegan import small_cyclegan

CLASSES = 5
_TENSOR = torch.tensor


def tiny(name: str, *settings: str, batch_size: int = 2) -> Recipe:
    recipe = small(get_recipe(name), size=(64, 96), steps=60, batch_size=batch_size)
    return override(recipe, ["precision=fp32", *settings])


def rounded(tensors: Iterable[Tensor]) -> int:
    return sum(-(-4 * t.numel() // BLOCK) * BLOCK for t in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["checkpointing=none", "checkpointing=all", "micro_batch_size=1"])
def test_fake_tensors_take_what_real_ones_take(setting: str) -> None:
    recipe = tiny("udas", f"memory.{setting}")
    tracker = MemoryTracker()
    with tracker, _forwards_make_activations(tracker):
        torch.manual_seed(0)
        networks = {"main": build_model(recipe.model, CLASSES)}
        real = [_stage_peak(recipe, stage, networks, CLASSES, True, tracker) for stage in recipe.stages]
    for found, want in zip(predict(recipe, num_classes=CLASSES), real, strict=True):
        assert found == want


def test_weights_gradients_and_optimiser_are_the_parameters_sizes() -> None:
    (peak,) = predict(tiny("no_adaptation"), num_classes=CLASSES)
    model = build_model(tiny("no_adaptation").model, CLASSES)
    weights = rounded(model.parameters())
    assert peak.kinds["weights"] >= weights + rounded(b for b in model.buffers() if b.is_floating_point())
    # AdamW: two moments of each parameter, and a count.
    assert peak.kinds["optimiser"] == 2 * weights + BLOCK * len(list(model.parameters()))
    assert peak.tensors == sum(peak.kinds.values()) < peak.needed
    image, label = 2 * 3 * 64 * 96, 2 * 64 * 96
    assert peak.kinds["inputs"] == image + label


@pytest.mark.slow
def test_a_teacher_and_an_average_are_one_more_network_each() -> None:
    first, second = predict(tiny("udas"), num_classes=CLASSES)
    averaged = predict(tiny("udas", "ema=0.99"), num_classes=CLASSES)[0]
    model = build_model(tiny("udas").model, CLASSES)
    network = rounded(model.parameters()) + rounded(model.buffers())
    assert second.kinds["weights"] > 2 * network
    assert averaged.kinds["weights"] - first.kinds["weights"] == pytest.approx(network, rel=0.01)


@pytest.mark.slow
def test_each_policy_needs_less_and_activations_grow_with_the_batch() -> None:
    wide = ["model.width=32", "model.backbone=resnet50", "memory.checkpointing="]
    peaks = [
        predict(tiny("no_adaptation", *wide[:2], wide[2] + policy, batch_size=1), num_classes=CLASSES)[0]
        for policy in CHECKPOINTING
    ]
    assert [p.tensors for p in peaks] == sorted((p.tensors for p in peaks), reverse=True)
    assert len({p.tensors for p in peaks}) == len(CHECKPOINTING)
    three = predict(tiny("no_adaptation", *wide[:2], batch_size=3), num_classes=CLASSES)[0]
    assert three.kinds["activations"] == pytest.approx(3 * peaks[0].kinds["activations"], rel=0.02)


@pytest.mark.slow
def test_a_micro_batch_needs_the_activations_of_its_images() -> None:
    one, four, in_parts = (
        predict(tiny("no_adaptation", "model.norm=frozen", *part, batch_size=size), num_classes=CLASSES)[0]
        for size, part in ((1, []), (4, []), (4, ["memory.micro_batch_size=1"]))
    )
    one, four, in_parts = (peak.kinds["activations"] for peak in (one, four, in_parts))
    assert one < four
    assert in_parts - one < 0.2 * (four - one)  # the others' inputs and low-resolution logits


@pytest.mark.slow
def test_sixteen_bits_need_less() -> None:
    recipe = tiny("no_adaptation", batch_size=4)
    half = replace(recipe, precision="bf16")
    assert predict(half)[0].kinds["activations"] < 0.7 * predict(recipe)[0].kinds["activations"]
    assert predict(replace(recipe, precision="fp16")) == predict(half)


def _on_the_host(*values: object, device: object = None, **options: object) -> Tensor:
    """torch.tensor, which waits for a GPU where it is to bring numbers there."""
    assert device is None, "torch.tensor(…, device=…) in a step"
    return _TENSOR(*values, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_recipes())
def test_no_recipe_waits_for_the_device_in_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors without values cannot be read: a step that asks for one, by .item() or bool(), raises.
    monkeypatch.setattr(torch, "tensor", _on_the_host)
    recipe = get_recipe(name)
    recipe = small_cyclegan(recipe, crop=(64, 64), steps=2) if name == "cyclegan" else tiny(name)
    assert [p.stage for p in predict(recipe)] == [s.name for s in recipe.stages]


@pytest.mark.slow
def test_self_training_on_labels_made_beforehand_needs_no_views() -> None:
    # Both have a teacher; its views are not the peak, so that the labels from disk take no less.
    online, disk = (
        predict(tiny("udas", *s))[1]
        for s in ([], ["stages.self_training.objective.pseudo_labels.labels=disk"])
    )
    assert disk.kinds["weights"] == online.kinds["weights"]
    assert disk.tensors <= online.tensors


def test_a_step_that_reads_a_value_is_told() -> None:
    def training_step(
        self: Supervised, model: nn.Module, batch: dict[str, Batch], ctx: StepContext
    ) -> Losses:
        if batch["seg"].label.sum() > 0:
            return {}
        raise AssertionError

    with (
        patch.object(Supervised, "training_step", training_step),
        pytest.raises(InputError, match="stage source: found a step that waits for the GPU"),
    ):
        predict(tiny("no_adaptation"))
