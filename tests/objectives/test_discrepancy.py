"""The KL between heads against its definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from udas_fast.objectives.discrepancy import head_discrepancy

from udas_fast.errors import InputError

SIZE = (11, 13)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False).softmax(1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(1).mean()


@pytest.fixture
def heads_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple((3 * torch.randn(2, 5, 3, 4, generator=generator)).requires_grad_() for _ in range(2))


def test_mean_form_is_mrnets(heads_logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    primary, auxiliary = heads_logits
    upsampled = [F.interpolate(x.double(), SIZE, mode="bilinear", align_corners=False) for x in heads_logits]
    m = (0.5 * upsampled[1] + upsampled[0]).softmax(1).detach()
    want = _kl(m, _probabilities(primary)) + _kl(m, _probabilities(auxiliary))
    got = head_discrepancy(heads_logits, SIZE, "mean")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    want_grads = torch.autograd.grad(want, heads_logits)
    for got_grad, want_grad in zip(torch.autograd.grad(got, heads_logits), want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-7)


def test_symmetric_form_is_the_papers_and_detaches_nothing(
    heads_logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    p, q = (_probabilities(x) for x in heads_logits)
    want = _kl(q, p) + _kl(p, q)
    got = head_discrepancy(heads_logits, SIZE, "symmetric")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    want_grads = torch.autograd.grad(want, heads_logits)
    for got_grad, want_grad in zip(torch.autograd.grad(got, heads_logits), want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-7)


def test_a_network_with_one_head_is_told_so(heads_logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="auxiliary head"):
        head_discrepancy(heads_logits[0], SIZE, "mean")
