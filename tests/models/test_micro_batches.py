"""Micro-batches: losses and gradients of the whole batch, activations of a part of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.models import DeepLabV2, ModelConfig, build_model, set_micro_batch_size
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.recipes import get_recipe
from udas_fast.testing import take_step

SIZES = (None, 2, 1)


def network(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone="resnet18", width=8, **options), 4).train()


def five() -> Batches:
    """Batches of five 64x96 images, so that parts differ in size; source images differ in labelled pixels."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (3, 5, 3, 64, 96), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 4, (5, 64, 96), dtype=torch.uint8, generator=generator)
    label[0] = 255
    label[1, :40] = 255
    ids = [str(i) for i in range(5)]
    source, labelled, unlabelled = image
    return Batches(Batch(source, label, ids), Batch(labelled, label, ids), Batch(unlabelled, None, ids))


@pytest.mark.parametrize("size", [2, 1])
def test_maps_in_parts_are_those_of_the_whole_and_have_its_gradients(size: int) -> None:
    whole, parts = (network(norm="frozen") for _ in range(2))
    set_micro_batch_size(parts, size)
    x = torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for model in (whole, parts):
        maps = model.encode(x)
        sum(m.square().mean() for m in maps).backward()
        torch.testing.assert_close(torch.stack(model.decode(maps)), torch.stack([*model(x)]))
    for a, b in zip(whole.backbone.parameters(), parts.backbone.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["udas", "seg_uncertainty"])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_in_parts_has_the_losses_and_gradients_of_the_whole(
    make_step: Callable[..., PrepareContext], recipe: str, stage: int
) -> None:
    config = get_recipe(recipe).stages[stage].objective
    if stage == 0:
        config = replace(config, adversary=replace(config.adversary, width=4))
    found = []
    for size in SIZES:
        model = network(norm="frozen")
        torch.manual_seed(1)
        objective = config.build(4)
        for module in (model, objective):
            set_micro_batch_size(module, size)
        objective.on_round_start(model)
        losses = take_step(objective, model, five(), make_step(progress=0.7))
        gradients = [
            p.grad for p in (*model.parameters(), *objective.discriminator_parameters()) if p.grad is not None
        ]
        found.append((losses, gradients))
    (losses, gradients), *others = found
    for other_losses, other_gradients in others:
        assert losses.keys() == other_losses.keys()
        for a, b in zip(
            (*losses.values(), *gradients), (*other_losses.values(), *other_gradients), strict=True
        ):
            # Only the order of float32 sums differs, on the way through 20 layers and back; but a pseudo-label at
            # the threshold may be kept in one and dropped in the other: one pixel in
            # 30,000, a difference of 1.3e-4.
            assert (a - b).norm() <= 1e-3 * a.norm() + 1e-9


def test_activations_of_one_part_are_alive_at_a_time() -> None:
    model, image = network(norm="frozen"), torch.randn(4, 3, 64, 96)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    saved = []
    for size in (None, 1):
        set_micro_batch_size(model, size)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(image)
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        saved.append(sum(nbytes for pointer, nbytes in kept.items() if pointer not in own))
        del output
    assert saved[1] <= image.untyped_storage().nbytes()  # only the input
    assert saved[0] > 5 * saved[1]


@pytest.mark.parametrize("checkpointing", [frozenset(), frozenset({"layer3"})])
def test_running_statistics_are_those_of_the_parts_each_once(checkpointing: frozenset[str]) -> None:
    image = torch.randn(4, 3, 64, 96)
    whole, parts = network(), network()
    parts.backbone.checkpointed = checkpointing
    set_micro_batch_size(parts, 2)
    sum(logits.square().sum() for logits in parts(image)).backward()
    for part in image.split(2):
        sum(logits.square().sum() for logits in whole(part)).backward()
    for (name, a), b in zip(whole.named_buffers(), parts.buffers(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * a.grad.abs().max().item())


def test_without_gradients_and_below_the_size_nothing_runs_twice() -> None:
    model, calls = network(norm="frozen", align_corners=True), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    image = torch.randn(3, 3, 33, 47)
    with torch.no_grad():
        whole = model(image)
        set_micro_batch_size(model, 2)
        parts = model(image)
    assert len(calls) == 3
    assert parts.align_corners
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    model(image[:2]).primary.sum().backward()
    assert len(calls) == 4


def test_networks_that_support_micro_batches() -> None:
    assert set_micro_batch_size(copy.deepcopy(network()), 2) == 1
    assert set_micro_batch_size(nn.Conv2d(3, 3, 1), 2) == 0
    assert isinstance(network(), DeepLabV2)
