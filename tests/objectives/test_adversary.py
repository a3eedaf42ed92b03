"""L_adv against its formulas in float64, and who receives its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from udas_fast.data import Batch
from udas_fast.errors import InputError
from udas_fast.models import SegmentationOutput, set_checkpointing
from udas_fast.objectives import adversary as module
from udas_fast.objectives.adversary import AdversaryConfig, OutputAdversary

SIZE = (40, 48)


def _outputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    primary, auxiliary = (torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True) for _ in range(2))
    return primary, auxiliary


def _images(size: tuple[int, int] = SIZE) -> Batch:
    return Batch(torch.zeros(2, 3, *size, dtype=torch.uint8), None, ["0", "1"])


def _adversary(**options: Any) -> OutputAdversary:
    return OutputAdversary((4, 4), AdversaryConfig(**{"width": 4} | options))


def _generator_loss(adversary: OutputAdversary, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return adversary.generator_loss(SegmentationOutput(*target), _images())


def _discriminator_loss(
    adversary: OutputAdversary,
    source: tuple[torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    return adversary.discriminator_loss(
        SegmentationOutput(*source), _images(), SegmentationOutput(*target), _images()
    )


def _answer(discriminator: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    upsampled = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)
    return discriminator.double()(upsampled.softmax(1))


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(x)).mean()


def test_generator_loss_is_the_weighted_loss_of_target_labelled_as_source() -> None:
    adversary = _adversary(weights=(0.3, 0.2))
    primary, auxiliary = _outputs(0)
    loss = _generator_loss(adversary, (primary, auxiliary))
    # Source is 0: -log(1 - sigmoid(a)) = log(1 + exp(a)).
    want = 0.3 * _softplus(_answer(adversary.primary, primary)) + 0.2 * _softplus(
        _answer(adversary.auxiliary, auxiliary)
    )
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)


def test_discriminator_loss_is_the_mean_of_source_0_and_target_1_over_both_levels() -> None:
    adversary = _adversary()
    source, target = _outputs(1), _outputs(2)
    loss = _discriminator_loss(adversary, source, target)
    want = torch.zeros((), dtype=torch.float64)
    for level, s, t in zip((adversary.primary, adversary.auxiliary), source, target, strict=True):
        want = want + 0.5 * _softplus(_answer(level, s)) + 0.5 * _softplus(-_answer(level, t))
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)


def test_ensemble_stands_for_the_source_on_both_levels() -> None:
    adversary = _adversary(real="ensemble")
    source, target = _outputs(1), _outputs(2)
    mixed = source[0] + 0.5 * source[1]
    got = _discriminator_loss(adversary, source, target)
    plain = _adversary(real="primary")
    plain.load_state_dict(adversary.state_dict())
    torch.testing.assert_close(got, _discriminator_loss(plain, (mixed, mixed), target))


def test_advent_sees_weighted_self_information() -> None:
    adversary = _adversary(weights=(0.3, 0.2), space="entropy")
    target = _outputs(0)
    loss = _generator_loss(adversary, target)
    got_grads = torch.autograd.grad(loss, target)
    want = torch.zeros((), dtype=torch.float64)
    for weight, level, logits in zip(
        (0.3, 0.2), (adversary.primary, adversary.auxiliary), target, strict=True
    ):
        p = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False).softmax(1)
        information = -p * (p + 1e-30).log() / torch.tensor(4.0).double().log()  # the base of the log cancels
        want = want + weight * _softplus(level.double()(information))
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)
    for got, expected in zip(got_grads, torch.autograd.grad(want, target), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-8)


def test_least_squares_add_up_over_the_scales() -> None:
    torch.manual_seed(0)
    adversary = _adversary(weights=(0.3, 0.2), gan="lsgan", scales=3)
    source, target = _outputs(1), _outputs(2)
    fooled = _generator_loss(adversary, target)
    told_apart = _discriminator_loss(adversary, source, target)
    want_fooled = want_told = torch.zeros((), dtype=torch.float64)
    levels = (adversary.primary, adversary.auxiliary)
    for weight, level, s, t in zip((0.3, 0.2), levels, source, target, strict=True):
        source_answers, target_answers = _answer(level, s), _answer(level, t)
        assert len(target_answers) == 3
        want_fooled = want_fooled + weight * sum((a**2).mean() for a in target_answers)  # source is 0
        want_told = want_told + 0.5 * sum((a**2).mean() for a in source_answers)
        want_told = want_told + 0.5 * sum(((a - 1) ** 2).mean() for a in target_answers)
    torch.testing.assert_close(fooled.double(), want_fooled, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(told_apart.double(), want_told, rtol=1e-5, atol=1e-7)


def test_a_level_of_weight_zero_has_no_discriminator() -> None:
    adversary = _adversary(weights=(0.3, 0.0))
    assert adversary.auxiliary is None
    source, target = _outputs(1), _outputs(2)
    want = 0.3 * _softplus(_answer(adversary.primary, target[0]))
    torch.testing.assert_close(
        _generator_loss(adversary.float(), target).double(), want, rtol=1e-5, atol=1e-7
    )
    _discriminator_loss(adversary, source, target).backward()
    assert all(p.grad is not None for p in adversary.parameters())


def test_gradients_of_the_generator_stop_before_the_discriminators() -> None:
    adversary = _adversary()
    target = _outputs(3)
    _generator_loss(adversary, target).backward()
    assert all(logits.grad is not None and logits.grad.abs().sum() > 0 for logits in target)
    assert all(parameter.grad is None for parameter in adversary.parameters())


def test_gradients_of_the_discriminators_stop_before_the_network() -> None:
    adversary = _adversary()
    source, target = _outputs(4), _outputs(5)
    _generator_loss(adversary, target)  # leaves the discriminators frozen, as in a training step
    _discriminator_loss(adversary, source, target).backward()
    assert all(parameter.grad is not None for parameter in adversary.parameters())
    assert all(logits.grad is None for logits in (*source, *target))


def _cycada(gate: float | None = None) -> OutputAdversary:
    """In evaluation mode: without dropout there is one right answer."""
    torch.manual_seed(0)
    return _adversary(width=8, weights=(0.1, 0), space="score", discriminator="pixel", gate=gate).eval()


def _pixel_answers(adversary: OutputAdversary, logits: torch.Tensor) -> torch.Tensor:
    """log-probabilities of (source, target), float64 [N, 2, H, W], by matrix products in place of convolutions."""
    x = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False).movedim(1, -1)
    convolutions = [m for m in adversary.primary if isinstance(m, torch.nn.Conv2d)]
    for i, conv in enumerate(convolutions):
        x = (x.relu() if i else x) @ conv.weight.double()[..., 0, 0].T + conv.bias.double()
    return x.log_softmax(-1).movedim(-1, 1)


def test_cycada_is_the_cross_entropy_of_two_answers_at_each_pixel_of_the_scores() -> None:
    adversary = _cycada()
    source, target = _outputs(1), _outputs(2)
    s, t = (_pixel_answers(adversary, logits[0]) for logits in (source, target))
    fooled = _generator_loss(adversary, target)
    torch.testing.assert_close(fooled.double(), -0.1 * t[:, 0].mean(), rtol=1e-5, atol=1e-7)
    fooled.backward()
    assert target[0].grad.any()
    assert target[1].grad is None  # one level
    assert all(p.grad is None for p in adversary.parameters())
    told = _discriminator_loss(adversary, source, target)
    want = -0.5 * s[:, 0].mean() - 0.5 * t[:, 1].mean()
    torch.testing.assert_close(told.double(), want, rtol=1e-5, atol=1e-7)
    told.backward()
    assert all(p.grad is not None for p in adversary.parameters())
    assert source[0].grad is None


def test_the_gate_opens_and_closes_with_the_mean_accuracy_of_100_steps() -> None:
    adversary = _cycada(gate=0.6)
    source, target = _outputs(1), _outputs(2)
    s, t = (_pixel_answers(adversary, logits[0]) for logits in (source, target))
    assert _generator_loss(adversary, target) == 0  # nothing is known of the discriminator yet
    told = _discriminator_loss(adversary, source, target)  # which learns behind a closed gate as well
    torch.testing.assert_close(
        told.double(), -0.5 * s[:, 0].mean() - 0.5 * t[:, 1].mean(), rtol=1e-5, atol=1e-7
    )
    accuracy = ((s[:, 0] > s[:, 1]).double().mean() + (t[:, 1] > t[:, 0]).double().mean()) / 2
    recorded = adversary.gate.accuracies
    assert recorded[:-1].isnan().all()
    torch.testing.assert_close(recorded[-1].double(), accuracy, rtol=1e-6, atol=0)

    # (accuracies so far, open): the mean counts, over what there is.
    for accuracies, is_open in (
        ([0.61], True),
        ([0.6 - 1e-4], False),
        ([0.9, 0.4], True),
        ([0.9, 0.2], False),
    ):
        recorded.fill_(torch.nan)
        recorded[-len(accuracies) :] = torch.tensor(accuracies)
        loss = _generator_loss(adversary, target)
        torch.testing.assert_close(loss.double(), -0.1 * t[:, 0].mean() * is_open, rtol=1e-5, atol=1e-7)
        (gradient,) = torch.autograd.grad(loss, target[0])
        assert gradient.any() == is_open

    recorded.copy_(torch.arange(100.0))
    _discriminator_loss(adversary, source, target)
    assert torch.equal(recorded[:-1], torch.arange(1.0, 100.0))  # the oldest is gone
    saved = adversary.state_dict()
    assert torch.equal(saved["gate.accuracies"], recorded)  # a resumed run has the same gate
    assert not any(p is recorded for p in adversary.parameters())


def test_least_squares_answers_are_right_beyond_one_half() -> None:
    adversary = _adversary(
        width=8, weights=(1, 0), space="score", discriminator="pixel", gate=0.5, gan="lsgan"
    )
    output = adversary.eval().primary[-1]
    torch.nn.init.zeros_(output.weight)
    with torch.no_grad():
        output.bias.copy_(torch.tensor([0.0, 0.4]))  # nearer the source everywhere
    adversary.discriminator_loss(
        SegmentationOutput(*_outputs(1)), _images((4, 4)), SegmentationOutput(*_outputs(2)), _images((4, 2))
    )
    assert adversary.gate.accuracies[-1].item() == pytest.approx(
        4 / 6
    )  # by pixels: 16 of the source, 8 of the target


def test_checkpointed_discriminators_give_the_same_bits_and_keep_no_full_resolution_map() -> None:
    torch.manual_seed(0)
    adversary = _adversary()
    found, most = [], []
    for policy in ("none", "layers2-4"):
        set_checkpointing(adversary, policy)
        adversary.zero_grad()
        target, source = _outputs(0), _outputs(1)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            losses = [_generator_loss(adversary, target)]
        losses[0].backward()
        losses.append(_discriminator_loss(adversary, source, target))
        losses[1].backward()
        found.append([*losses, *(p.grad for p in adversary.parameters()), *(t.grad for t in target)])
        most.append(max(kept, default=0))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    full, low = 2 * 4 * SIZE[0] * SIZE[1], 2 * 4 * 5 * 6
    assert most[0] == full
    assert most[1] <= low


@pytest.mark.parametrize("saving", [{"checkpointed": frozenset({"discriminators"})}, {"micro_batch_size": 1}])
def test_what_runs_again_is_given_its_tensors(saving: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch puts back the random state of the devices that it finds among the arguments: on a GPU a discriminator with
    # dropout would else hide other channels the second time.
    given = []

    def run(function: Callable[..., Any], *args: object, **_: object) -> Any:
        given.append([type(arg) for arg in args])
        return function(*args)

    monkeypatch.setattr(module, "checkpoint", run)
    adversary = _adversary(discriminator="pixel")
    for name, value in saving.items():
        setattr(adversary, name, value)
    _generator_loss(adversary, _outputs(0))
    assert given
    assert all(types == [torch.Tensor] for types in given)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": (0, 0)}, r"weights: found \[0.0, 0.0\], expected one above 0"),
        ({"discriminator": "pixel", "scales": 3}, 'found 3, expected 1 with discriminator "pixel"'),
    ],
)
def test_an_adversary_that_could_not_learn_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        AdversaryConfig(**options)
