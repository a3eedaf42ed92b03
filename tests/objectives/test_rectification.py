"""Rectified pseudo-labels against Zheng and Yang's formulas in float64, and what the teacher looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from take_step import take_step
from torch import nn

from udas_fast.data import Batch
from udas_fast.objectives import Step
from udas_fast.objectives.rectification import RectificationConfig, rectified_loss

SIZE = (12, 14)


def _up(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)


def _one_side(p: torch.Tensor, q: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """mean(CE(p)·exp(−var)) + mean(var), var = KL(q‖p)."""
    var = (q.softmax(1) * (q.log_softmax(1) - p.log_softmax(1))).sum(1)
    return (F.cross_entropy(p, label.long(), reduction="none") * (-var).exp()).mean() + var.mean()


def test_loss_is_the_papers_on_both_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    primary, auxiliary = (torch.randn(2, 5, 3, 4, generator=generator, requires_grad=True) for _ in range(2))
    label = torch.randint(0, 5, (2, *SIZE), dtype=torch.uint8, generator=generator)
    p, a = _up(primary, SIZE), _up(auxiliary, SIZE)
    want = _one_side(p, a, label) + 0.5 * _one_side(a, p, label)
    got = rectified_loss((primary, auxiliary), label, 0.5)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    want_grads = torch.autograd.grad(want, (primary, auxiliary))
    for got_grad, want_grad in zip(torch.autograd.grad(got, (primary, auxiliary)), want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-7)


def test_teacher_averages_four_views_and_keeps_every_pixel(
    tiny_net: nn.Module, batches: dict[str, Batch]
) -> None:
    objective = RectificationConfig().build(4)
    objective.start(tiny_net)
    image = batches["unlabelled"].image.float() / 255
    net, total = tiny_net.eval(), 0
    with torch.no_grad():
        for size in ((32, 48), (40, 60)):
            scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)
            for flip in (False, True):
                primary, auxiliary = net(scaled.flip(-1) if flip else scaled)
                logits = _up(primary + 0.5 * auxiliary, (32, 48))
                total = total + (logits.flip(-1) if flip else logits).softmax(1)
    top = total.topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > 1e-5  # elsewhere rounding decides
    assert clear.float().mean() > 0.95
    assert torch.equal(objective.label(image)[clear].long(), total.argmax(1)[clear])


def test_student_learns_and_the_teacher_stays(
    tiny_net: nn.Module, batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    config = RectificationConfig()
    assert config.needs == ("unlabelled",)
    objective = config.build(4)
    objective.start(tiny_net)
    before = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    losses = take_step(objective, tiny_net.train(), batches, make_step())
    assert set(losses) == {"rectified"}
    assert all(p.grad is not None for p in tiny_net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in objective.teacher.state_dict().items())
    assert all(p.grad is None for p in objective.teacher.parameters())
