"""Parameter groups: each trainable parameter once, heads faster."""

import pytest
import torch
from torch import nn

from udas_fast.errors import InputError
from udas_fast.models import DeepLabV2, Discriminator, parameter_groups


@pytest.mark.parametrize("norm", ["batch", "frozen", "domain"])
def test_each_trainable_parameter_is_in_exactly_one_group(norm):
    model = DeepLabV2(5, backbone="resnet50", width=4, norm=norm)
    groups = parameter_groups(model, 1e-3, weight_decay=5e-4)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}


def test_rates_and_decay_of_the_groups():
    model = DeepLabV2(5, backbone="resnet18", width=4)
    backbone, head = parameter_groups(model, 2.5e-4, weight_decay=5e-4)
    assert backbone["lr"] == pytest.approx(2.5e-4)
    assert head["lr"] == pytest.approx(2.5e-3)
    assert backbone["weight_decay"] == head["weight_decay"] == 5e-4
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head_parameters()}
    old, _ = parameter_groups(model, 2.5e-4, weight_decay=5e-4, backbone_lr_mult=3)
    assert old["lr"] == pytest.approx(7.5e-4)


def test_one_step_moves_backbone_and_heads_by_their_rates():
    model = DeepLabV2(5, backbone="resnet18", width=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(parameter_groups(model, 0.01, weight_decay=0.0), lr=1.0).step()
    for name, p in model.named_parameters():
        moved = 0.01 if name.startswith("backbone.") else 0.1
        torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, moved), rtol=1e-3, atol=1e-6)


def test_shared_parameters_are_listed_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    (group,) = parameter_groups(model, 0.1, weight_decay=0.0)
    assert len(group["params"]) == 3


def test_a_model_without_heads_is_one_group():
    (group,) = parameter_groups(Discriminator(5, width=4), 1e-4, weight_decay=0.0)
    assert group["lr"] == 1e-4
    assert len(group["params"]) == 10


def test_frozen_parts_are_left_out():
    model = DeepLabV2(5, backbone="resnet18", width=4)
    model.backbone.requires_grad_(False)
    (group,) = parameter_groups(model, 1e-4, weight_decay=0.0)
    assert group["name"] == "heads"
    with pytest.raises(InputError, match="no trainable parameter"):
        parameter_groups(model.requires_grad_(False), 1e-4, weight_decay=0.0)
