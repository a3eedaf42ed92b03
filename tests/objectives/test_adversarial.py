"""L_adv against the formulas of facts.md, in float64, and who receives its gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from udas_fast.objectives.adversarial import OutputAdversary

SIZE = (40, 48)


def _outputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True) for _ in range(2))


def _answer(discriminator: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    upsampled = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)
    return discriminator.double()(upsampled.softmax(1))


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(x)).mean()


def test_fool_is_the_weighted_loss_of_target_labelled_as_source() -> None:
    adversary = OutputAdversary(4, width=4, weights=(0.3, 0.2))
    primary, auxiliary = _outputs(0)
    loss = adversary.fool((primary, auxiliary), SIZE)
    # Source is 0: -log(1 - sigmoid(a)) = log(1 + exp(a)).
    want = 0.3 * _softplus(_answer(adversary.primary, primary)) + 0.2 * _softplus(
        _answer(adversary.auxiliary, auxiliary)
    )
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)


def test_discriminate_is_the_mean_of_source_0_and_target_1_over_both_levels() -> None:
    adversary = OutputAdversary(4, width=4)
    source, target = _outputs(1), _outputs(2)
    loss = adversary.discriminate(source, SIZE, target, SIZE)
    want = torch.zeros((), dtype=torch.float64)
    for level, s, t in zip((adversary.primary, adversary.auxiliary), source, target, strict=True):
        want = want + 0.5 * _softplus(_answer(level, s)) + 0.5 * _softplus(-_answer(level, t))
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)


def test_ensemble_stands_for_the_source_on_the_primary_level_only() -> None:
    adversary = OutputAdversary(4, width=4, real="ensemble")
    source, target = _outputs(1), _outputs(2)
    mixed = (source[0] + 0.5 * source[1], source[1])
    got = adversary.discriminate(source, SIZE, target, SIZE)
    adversary.real = "primary"
    torch.testing.assert_close(got, adversary.discriminate(mixed, SIZE, target, SIZE))


def test_gradients_of_fool_stop_before_the_discriminators() -> None:
    adversary = OutputAdversary(4, width=4)
    target = _outputs(3)
    adversary.fool(target, SIZE).backward()
    assert all(logits.grad is not None and logits.grad.abs().sum() > 0 for logits in target)
    assert all(parameter.grad is None for parameter in adversary.parameters())


def test_gradients_of_discriminate_stop_before_the_network() -> None:
    adversary = OutputAdversary(4, width=4)
    source, target = _outputs(4), _outputs(5)
    adversary.fool(target, SIZE)  # leaves the discriminators frozen, as in a training step
    adversary.discriminate(source, SIZE, target, SIZE).backward()
    assert all(parameter.grad is not None for parameter in adversary.parameters())
    assert all(logits.grad is None for logits in (*source, *target))
