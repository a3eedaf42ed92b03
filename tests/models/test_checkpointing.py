"""Checkpointing changes no number, and fewer activations are kept for the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from udas_fast.errors import InputError
from udas_fast.models import CHECKPOINTING, DeepLabV2, set_checkpointing, set_domain
from udas_fast.models.checkpointing import run_blocks

POLICIES = list(CHECKPOINTING)


def small_model(norm: str = "batch", backbone: str = "resnet18") -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(4, backbone=backbone, width=4, norm=norm).train()


def two_steps(model: DeepLabV2, policy: str, autocast: bool = False) -> list[Tensor]:
    """Losses, gradients and buffers after two forwards, a backward for both, and another forward and backward.

    The target's forward comes between the source's and its backward: by then another domain is set.
    """
    set_checkpointing(model, policy)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(2):
        images = torch.randn(2, 2, 3, 33, 47, generator=generator)
        for domain, image in zip(("source", "target"), images, strict=True):
            set_domain(model, domain)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                losses.append(sum(logits.float().square().sum() for logits in model(image)))
        (losses[-1] + losses[-2]).backward()
    return [
        *(loss.detach() for loss in losses),
        *(p.grad for p in model.parameters() if p.grad is not None),
        *model.buffers(),
    ]


@pytest.mark.parametrize("norm", ["batch", "frozen", "domain"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_same_bits(policy: str, norm: str) -> None:
    model = small_model(norm)
    want = two_steps(copy.deepcopy(model), "none")
    got = two_steps(model, policy)
    assert len(want) == len(got)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_same_bits_under_autocast() -> None:
    model = small_model()
    want = two_steps(copy.deepcopy(model), "none", autocast=True)
    got = two_steps(model, "all", autocast=True)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_running_statistics_move_once_a_step() -> None:
    model = small_model()
    set_checkpointing(model, "all")
    model(torch.randn(1, 3, 32, 32)).primary.sum().backward()
    assert {int(b) for name, b in model.named_buffers() if name.endswith("batches_tracked")} == {1}


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_dropout_draws_the_same_numbers_again(kind: type[nn.Module]) -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 3), kind(0.5), nn.Conv2d(3, 3, 1))
    x = torch.randn(2, 3, 8, 8)
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        block.zero_grad()
        run_blocks([block], x, checkpointed=checkpointed).square().sum().backward()
        grads.append([p.grad.clone() for p in block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def saved_bytes(model: nn.Module, policy: str) -> int:
    """Return the bytes of storage that autograd keeps between forward and backward, without the model's own."""
    set_checkpointing(model, policy)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(1, 3, 64, 96))  # alive while it is counted
    del output
    return sum(saved.values())


def test_each_policy_keeps_less_than_the_one_before() -> None:
    kept = [saved_bytes(small_model(backbone="resnet101"), policy) for policy in POLICIES]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)
    # A bottleneck keeps one wide map out of three: its input.
    assert kept[-1] < 0.4 * kept[0]


def test_nothing_is_checkpointed_without_gradients() -> None:
    model = small_model()
    set_checkpointing(model, "all")
    with torch.no_grad():
        first = copy.deepcopy(model).eval()(torch.ones(1, 3, 32, 32)).primary
    assert not first.requires_grad


def test_wrong_policies_and_models() -> None:
    with pytest.raises(InputError, match="checkpointing: found 'layers', expected one of all, layer3"):
        set_checkpointing(small_model(), "layers")
    assert set_checkpointing(small_model(), "all") == 1
    assert set_checkpointing(nn.Conv2d(3, 3, 1), "all") == 0
