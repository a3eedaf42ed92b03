"""Parameter groups: each trainable parameter once, heads faster."""

import pytest
import torch
from torch import nn

from udas_fast.errors import InputError
from udas_fast.models import DeepLabV2, Discriminator, ModelConfig, build_model, parameter_groups


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


def vit(**options) -> nn.Module:
    return build_model(ModelConfig(backbone="dinov2_s", width=12, head="linear", **options), 5)


def rates(groups: list[dict]) -> dict[int, tuple[float, float]]:
    return {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_norms_biases_tokens_and_positions_need_not_decay():
    for model in (
        vit(),
        build_model(ModelConfig(backbone="mit_b0", width=8), 5),
        DeepLabV2(5, backbone="resnet18", width=4),
    ):
        groups = parameter_groups(model, 1e-3, weight_decay=0.05, decay_norms=False)
        found = rates(groups)
        assert len(found) == len(list(model.parameters()))
        norms = (nn.LayerNorm, nn.BatchNorm2d)
        plain = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
        for name, p in model.named_parameters():
            last = name.rpartition(".")[2]
            free = id(p) in plain or last in ("bias", "gamma", "cls_token", "pos_embed")
            assert found[id(p)][1] == (0.0 if free else 0.05), name
    assert all(decay == 0.05 for _, decay in rates(parameter_groups(vit(), 1e-3, weight_decay=0.05)).values())


def test_rates_fall_from_block_to_block():
    model = vit()
    groups = parameter_groups(
        model, 1e-3, weight_decay=0.0, head_lr_mult=10, backbone_lr_mult=0.5, layer_decay=0.9
    )
    found = rates(groups)
    for name, p in model.named_parameters():
        if name.startswith("backbone.blocks."):
            expected = 0.5e-3 * 0.9 ** (12 - int(name.split(".")[2]))
        elif name.startswith("backbone.norm."):
            expected = 0.5e-3 * 0.9
        elif name.startswith("backbone."):
            expected = 0.5e-3 * 0.9**13
        else:
            expected = 1e-2
        assert found[id(p)][0] == pytest.approx(expected), name
    assert [group["name"] for group in groups] == [*(f"backbone.{i}" for i in range(13)), "heads"]


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "mit_b0"])
def test_rates_fall_in_every_backbone(backbone):
    model = build_model(ModelConfig(backbone=backbone, width=8), 5)
    groups = parameter_groups(model, 1.0, weight_decay=0.0, layer_decay=0.5, decay_norms=False)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    blocks = [group["lr"] for group in groups if not group["name"].startswith("heads")]
    assert blocks == sorted(blocks)
    assert max(blocks) == 0.5


def test_blocks_of_a_users_network_are_unknown():
    with pytest.raises(InputError, match="layer_decay: found Discriminator without a backbone"):
        parameter_groups(Discriminator(5, width=4), 1e-4, weight_decay=0.0, layer_decay=0.9)
