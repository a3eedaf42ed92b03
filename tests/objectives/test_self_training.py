"""Self-training's student: the images that it sees, and its consistency with the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.self_training import ConsistencyConfig, SelfTrainingConfig
from udas_fast.testing import take_step


def test_the_student_sees_augmented_images(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = SelfTrainingConfig(
        pseudo_labels=PseudoLabelConfig(views=("identity",)), consistency=None, label_consistency_weight=0.0
    ).build(4)
    objective.on_round_start(tiny_net)
    take_step(objective, tiny_net, batches, make_step(seed=3))
    again, target = make_step(seed=3), batches.unlabelled
    seen = [again.augment(target.image), batches.source.image, again.augment(batches.labelled.image)]
    assert all(torch.equal(a, again.normalize(b)) for a, b in zip(tiny_net.inputs, seen, strict=True))
    assert not torch.equal(seen[0], target.image)


def test_consistency_is_zero_where_the_student_sees_what_the_teacher_saw(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    config = SelfTrainingConfig(
        pseudo_labels=PseudoLabelConfig(views=("identity",), flip_view=True),
        consistency=ConsistencyConfig(weight=0.5, temperature=0.5),
        augment=False,
        mixing=MixingConfig(augment="none"),
    )
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 1)
    objective = config.build(4)
    objective.on_round_start(model)
    same = take_step(objective, model, batches, make_step())
    assert same["consistency"].abs() < 1e-6  # float32 sums of p·log(p/p), mirrored back exactly
    with torch.no_grad():
        model.bias += torch.tensor([0.5, 0, 0, -0.5])
    logits = model(batches.unlabelled.image.float() / 255).double()
    teacher = objective.teacher(batches.unlabelled.image.float() / 255).double()
    p, q = ((x / 0.5).softmax(1) for x in (teacher, logits))
    expected = (p * (p / q).log()).sum(1).mean()
    moved = take_step(objective, model, batches, make_step())
    torch.testing.assert_close(moved["consistency"].double(), expected, rtol=1e-4, atol=1e-7)
