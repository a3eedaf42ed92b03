"""float16: losses at extreme logits, and steps that the loss scaler leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from udas_fast.engine.loop import Loop, Phase
from udas_fast.objectives.discrepancy import head_discrepancy
from udas_fast.objectives.entropy import target_entropy

from udas_fast import ops
from udas_fast.data import Batch
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import Amp, build_amp
from udas_fast.objectives import Step
from udas_fast.objectives.adversary import OutputAdversary
from udas_fast.objectives.rectification import rectified_loss
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.objectives.supervised import SupervisedConfig

SIZE = (40, 48)
LARGE = 3e4  # the heads' ensemble, one and a half of it, is still a number in float16


def extreme(seed: int) -> Tensor:
    """float16 logits [2, 4, 5, 6] of 0 and ±LARGE."""
    signs = torch.randint(-1, 2, (2, 4, 5, 6), generator=torch.Generator().manual_seed(seed))
    return (LARGE * signs).half().requires_grad_()


def assert_finite(loss: Tensor, *inputs: Tensor) -> None:
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    loss.backward()
    for x in inputs:
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"space": "entropy"},
        {"real": "ensemble"},
        {"gan": "lsgan", "scales": 2},
        {"gate": 0.6},
    ],
    ids=str,
)
def test_adversarial_losses_are_finite_at_extreme_logits(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    adversary = OutputAdversary(4, width=4, **options)
    source, target = (extreme(0), extreme(1)), (extreme(2), extreme(3))
    with torch.autocast("cpu", torch.float16):
        fooled = adversary.generator_loss(target, SIZE)
    assert_finite(fooled, *target)
    with torch.autocast("cpu", torch.float16):
        told_apart = adversary.discriminator_loss(source, SIZE, target, SIZE)
    assert_finite(told_apart, *adversary.parameters())


@pytest.mark.parametrize("answer", [-6e4, 0.0, 6e4])
def test_a_discriminator_that_is_too_sure_still_has_a_loss(answer: float) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.half() * 0 + answer

    for gan in ("bce", "lsgan"):
        adversary = OutputAdversary(4, width=4, gan=gan)
        adversary.primary = adversary.auxiliary = Sure()
        target = (extreme(0), extreme(1))
        assert adversary.generator_loss(target, SIZE).isfinite()
        assert adversary.discriminator_loss(target, SIZE, target, SIZE).isfinite()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl of the heads": lambda a, b: head_discrepancy((a, b), SIZE, "mean"),
    "symmetric kl": lambda a, b: head_discrepancy((a, b), SIZE, "symmetric"),
    "distillation": lambda a, b: (
        ops.distillation_kl(a, [b.detach()], SIZE, temperature=0.5) + 0 * b.float().sum()
    ),
    "entropy": lambda a, b: target_entropy((a, b), SIZE, (1.0, 1.0)),
    "robust entropy": lambda a, b: target_entropy((a, b), SIZE, (1.0, 1.0), 2.0),
    "rectified": lambda a, b: rectified_loss((a, b), torch.ones(2, *SIZE, dtype=torch.uint8), 0.5),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_finite_at_extreme_logits(loss: str) -> None:
    primary, auxiliary = extreme(0), extreme(1)
    assert_finite(LOSSES[loss](primary, auxiliary), primary, auxiliary)


class Still:
    """The same batch in every step."""

    global_batch = 2

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def batches(self, start_step: int, device: torch.device) -> Iterator[Batch]:
        while True:
            yield self.batch


def scaled() -> Amp:
    """fp32 on the CPU with the scaler that fp16 has on a GPU."""
    plain = build_amp("fp32", torch.device("cpu"))
    return Amp(plain.device, "fp32", torch.amp.GradScaler("cpu", init_scale=2.0**10), plain.skips)


def build_loop(model: nn.Module, batch: Batch, amp: Amp) -> Loop:
    phase = Phase("source", 5, OptimizerConfig(name="sgd", lr=0.01))
    return Loop(phase, model, SupervisedConfig().build(4), {"source": Still(batch)}, amp, seed=0)


def test_skipped_steps_are_counted_and_leave_the_weights(
    tiny_net: nn.Module, batches: dict[str, Batch]
) -> None:
    steps = iter(range(5))
    tiny_net.body.register_forward_hook(
        lambda _, __, y: y.register_hook(lambda g: g * torch.inf if next(steps) in (1, 3) else g) and None
    )
    loop = build_loop(tiny_net, batches["source"], scaled())
    counts, weights = [], []

    def after_step(losses: dict[str, Tensor]) -> None:
        counts.append(int(losses["scaler_skips"]))
        weights.append(tiny_net.body.weight.detach().clone())

    loop.run(after_step)
    assert counts == [0, 1, 1, 2, 2]
    still = [torch.equal(a, b) for a, b in pairwise(weights)]
    assert still == [True, False, True, False]

    again = build_loop(tiny_net, batches["source"], scaled())
    again.load_state_dict(loop.state_dict())
    assert int(again.amp.skips) == 2
    assert again.amp.scaler.get_scale() == 2.0**8  # halved twice


def test_without_a_scaler_nothing_is_counted(tiny_net: nn.Module, batches: dict[str, Batch]) -> None:
    loop = build_loop(tiny_net, batches["source"], build_amp("fp32", torch.device("cpu")))
    seen: list[set[str]] = []
    loop.run(lambda losses: seen.append(set(losses)))
    assert seen == [{"seg"}] * 5


def test_a_teacher_looks_in_half_precision_and_keeps_no_graph(
    tiny_net: nn.Module, batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    objective, step = SelfTrainingConfig().build(4), make_step()
    objective.start(tiny_net)
    with torch.autocast("cpu", torch.bfloat16):
        photometric = objective.photometric_views(batches["unlabelled"], step.augment)
        views, _ = objective.look(photometric, step.normalize)
    assert len(views) == 3
    for logits in (logits for view in views for logits in view):
        assert logits.dtype == torch.bfloat16
        assert not logits.requires_grad
    assert not objective.teacher.training


def test_momentum_begins_at_zero_where_the_first_step_is_left_out(
    tiny_net: nn.Module, batches: dict[str, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    # fp16 mostly begins so, at a scale of 65,536. What torch leaves uninitialised is NaN here.
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, torch.nan, **options))
    first = iter([True])
    tiny_net.body.register_forward_hook(
        lambda _, __, y: y.register_hook(lambda g: g * torch.inf if next(first, False) else g) and None
    )
    before = tiny_net.body.weight.detach().clone()
    loop = build_loop(tiny_net, batches["source"], scaled())
    loop.run(lambda losses: None)
    assert int(loop.amp.skips) == 1
    assert tiny_net.body.weight.isfinite().all()
    assert not torch.equal(tiny_net.body.weight, before)


def test_a_run_goes_on_in_another_precision(tiny_net: nn.Module, batches: dict[str, Batch]) -> None:
    # A GPU without bf16 goes on with what one that has it began, and the other way round.
    plain = build_amp("fp32", torch.device("cpu"))
    for began, goes_on in ((plain, scaled()), (scaled(), plain)):
        state = build_loop(tiny_net, batches["source"], began).state_dict()
        loop = build_loop(tiny_net, batches["source"], goes_on)
        loop.load_state_dict(state)
        loop.run(lambda losses: None)
        assert loop.done == 5
