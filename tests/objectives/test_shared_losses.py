"""Losses of segmentation outputs against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from udas_fast.errors import InputError
from udas_fast.models import to_output
from udas_fast.objectives.losses import agreement_loss, entropy_loss, rectified_loss

SIZE = (11, 13)


def _up(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return _up(logits).softmax(1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(1).mean()


@pytest.fixture
def heads_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple((3 * torch.randn(2, 5, 3, 4, generator=generator)).requires_grad_() for _ in range(2))


def test_mean_form_is_mrnets(heads_logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    primary, auxiliary = heads_logits
    upsampled = [_up(x) for x in heads_logits]
    m = (0.5 * upsampled[1] + upsampled[0]).softmax(1).detach()
    want = _kl(m, _probabilities(primary)) + _kl(m, _probabilities(auxiliary))
    got = agreement_loss(to_output(heads_logits), SIZE, "mean")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    want_grads = torch.autograd.grad(want, heads_logits)
    for got_grad, want_grad in zip(torch.autograd.grad(got, heads_logits), want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-7)


def test_symmetric_form_is_the_papers_and_detaches_nothing(
    heads_logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    p, q = (_probabilities(x) for x in heads_logits)
    want = _kl(q, p) + _kl(p, q)
    got = agreement_loss(to_output(heads_logits), SIZE, "symmetric")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    want_grads = torch.autograd.grad(want, heads_logits)
    for got_grad, want_grad in zip(torch.autograd.grad(got, heads_logits), want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-7)


def test_losses_of_two_heads_refuse_a_network_with_one(
    heads_logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    one = to_output(heads_logits[0])
    with pytest.raises(InputError, match="the KL between heads needs a network with an auxiliary head"):
        agreement_loss(one, SIZE, "mean")
    with pytest.raises(
        InputError, match="uncertainty of pseudo-labels needs a network with an auxiliary head"
    ):
        rectified_loss(one, torch.zeros(2, *SIZE, dtype=torch.uint8), 0.5)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple((2 * torch.randn(2, 5, 3, 4, generator=generator)).requires_grad_() for _ in range(2))


def _normalised_entropy(logits: torch.Tensor) -> torch.Tensor:
    p = _probabilities(logits)
    return -(p * p.log()).sum(1) / math.log(5)


def test_minent_weighs_the_mean_entropy_of_both_heads(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    want = 0.001 * _normalised_entropy(logits[0]).mean() + 0.0002 * _normalised_entropy(logits[1]).mean()
    _check(entropy_loss(to_output(logits), SIZE, (0.001, 0.0002)), want, logits)


def test_fda_penalises_by_charbonnier(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    want = 0.005 * (_normalised_entropy(logits[0]) ** 2 + 0.001**2).pow(2.0).mean()
    got = entropy_loss(to_output(logits), SIZE, (0.005, 0.0), 2.0)
    _check(got, want, logits[:1])
    assert torch.autograd.grad(got, logits[1], allow_unused=True) == (None,)


def _check(got: torch.Tensor, want: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-9)
    got_grads = torch.autograd.grad(got, inputs, retain_graph=True)
    for got_grad, want_grad in zip(got_grads, torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-9)


def _one_side(p: torch.Tensor, q: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """mean(CE(p)·exp(−var)) + mean(var), var = KL(q‖p)."""
    var = (q.softmax(1) * (q.log_softmax(1) - p.log_softmax(1))).sum(1)
    return (F.cross_entropy(p, label.long(), reduction="none") * (-var).exp()).mean() + var.mean()


def test_rectified_loss_is_the_papers_on_both_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    primary, auxiliary = (torch.randn(2, 5, 3, 4, generator=generator, requires_grad=True) for _ in range(2))
    label = torch.randint(0, 5, (2, *SIZE), dtype=torch.uint8, generator=generator)
    p, a = _up(primary), _up(auxiliary)
    want = _one_side(p, a, label) + 0.5 * _one_side(a, p, label)
    got = rectified_loss(to_output((primary, auxiliary)), label, 0.5)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    want_grads = torch.autograd.grad(want, (primary, auxiliary))
    for got_grad, want_grad in zip(torch.autograd.grad(got, (primary, auxiliary)), want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-7)
