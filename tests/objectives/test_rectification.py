"""Seg-Uncertainty's second stage: the teacher's labels in float64, and who learns."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.rectification import RectificationConfig
from udas_fast.testing import take_step


def _up(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)


def test_teacher_averages_four_views_and_keeps_every_pixel(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = RectificationConfig().build(4)
    objective.on_round_start(tiny_net)
    image = batches.unlabelled.image.float() / 255
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
    labelling = objective.labelling
    views = labelling.views([batches.unlabelled.image], make_step().normalize)
    found = labelling.label(*views, (32, 48), labelling.thresholds()).label
    assert torch.equal(found[clear].long(), total.argmax(1)[clear])


def test_student_learns_and_the_teacher_stays(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    config = RectificationConfig()
    assert config.requirements.streams == ("unlabelled",)
    objective = config.build(4)
    objective.on_round_start(tiny_net)
    before = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    losses = take_step(objective, tiny_net.train(), batches, make_step())
    assert set(losses) == {"rectified"}
    assert all(p.grad is not None for p in tiny_net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in objective.teacher.state_dict().items())
    assert all(p.grad is None for p in objective.teacher.parameters())
