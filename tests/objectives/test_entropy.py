"""MinEnt and FDA's robust entropy against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from udas_fast.objectives.entropy import target_entropy

SIZE = (11, 13)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple((2 * torch.randn(2, 5, 3, 4, generator=generator)).requires_grad_() for _ in range(2))


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    p = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False).softmax(1)
    return -(p * p.log()).sum(1) / math.log(5)


def test_minent_weighs_the_mean_entropy_of_both_heads(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    want = 0.001 * _entropy(logits[0]).mean() + 0.0002 * _entropy(logits[1]).mean()
    _check(target_entropy(logits, SIZE, (0.001, 0.0002)), want, logits)


def test_fda_penalises_by_charbonnier(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    want = 0.005 * (_entropy(logits[0]) ** 2 + 0.001**2).pow(2.0).mean()
    got = target_entropy(logits, SIZE, (0.005, 0.0), 2.0)
    _check(got, want, logits[:1])
    assert torch.autograd.grad(got, logits[1], allow_unused=True) == (None,)


def _check(got: torch.Tensor, want: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-9)
    got_grads = torch.autograd.grad(got, inputs, retain_graph=True)
    for got_grad, want_grad in zip(got_grads, torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-9)
