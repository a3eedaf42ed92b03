"""FCN and DeepLabV3+: parameter counts of the published networks, inputs of each head, and use in every recipe."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from udas_fast.errors import InputError
from udas_fast.models import FCN, DeepLabV3Plus, ModelConfig, ResNet, build_model

NAMES = ("deeplabv2", "deeplabv3plus", "pspnet", "fcn")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_fcn_is_torchvisions_fcn_resnet50() -> None:
    with torch.device("meta"):
        model = FCN(21, backbone="resnet50")
    assert count(model) == 35_322_218  # FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1, num_params
    assert count(model.auxiliary) == 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_deeplabv3plus_layer_by_layer(backbone: str) -> None:
    with torch.device("meta"):
        model = DeepLabV3Plus(19, backbone=backbone)
        body = count(ResNet(backbone))
    norm = 2 * 256
    aspp = (2048 * 256 + norm) + 3 * (2048 * 256 * 9 + norm) + (2048 * 256 + 256) + (5 * 256 * 256 + norm)
    details = 256 * 48 + 2 * 48
    decoder = (304 * 256 * 9 + norm) + (256 * 19 + 19)
    assert count(model) - count(model.auxiliary) == body + aspp + details + decoder
    if backbone == "resnet101":
        # The common PyTorch form (DeepLabV3Plus-Pytorch, plain convolutions) has a norm on the pooled branch:
        # 512 numbers, against 256 of the bias here.
        assert count(model) - count(model.auxiliary) == 58_753_459 - 256


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["batch", "frozen", "domain"])
def test_one_image_trains_both_heads(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(head=name, backbone="resnet18", width=8, norm=norm, dropout=0.1), 5)
    primary, auxiliary = model.train()(torch.randn(1, 3, 40, 56))
    assert primary.shape[:2] == auxiliary.shape[:2] == (1, 5)
    primary.square().sum().backward(retain_graph=True)
    assert all(p.grad is None for p in model.auxiliary.parameters())
    auxiliary.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    heads = {id(p) for p in model.head_parameters()}
    assert heads == {id(p) for p in model.parameters()} - {id(p) for p in model.backbone.parameters()}
    assert all(p.requires_grad for p in model.head_parameters())


@pytest.mark.parametrize("stride", [4, 8])
def test_output_sizes(stride: int) -> None:
    options = {"backbone": "resnet18", "width": 4, "output_stride": stride}
    x = torch.zeros(1, 3, 64, 96)
    primary, auxiliary = FCN(5, **options).eval()(x)
    assert primary.shape == auxiliary.shape == (1, 5, *auxiliary.shape[-2:])
    fine, coarse = DeepLabV3Plus(5, **options).eval()(x)
    assert coarse.shape == auxiliary.shape
    assert [round(f / c) for f, c in zip(fine.shape[-2:], coarse.shape[-2:], strict=True)] == [2, 2]


def test_decoder_sees_layer1_beside_the_upsampled_pyramid() -> None:
    torch.manual_seed(0)
    model = DeepLabV3Plus(5, backbone="resnet18", width=8).eval()
    x = torch.randn(2, 3, 40, 56)
    first = model.backbone.layer1(model.backbone.stem(x))
    *_, third, fourth = model.backbone(x)
    pooled = model.aspp.pooled(fourth.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *fourth.shape[-2:])
    pyramid = model.aspp.project(torch.cat([*(b(fourth) for b in model.aspp.branches), pooled], 1))
    up = F.interpolate(pyramid, first.shape[-2:], mode="bilinear", align_corners=False)
    primary, auxiliary = model(x)
    torch.testing.assert_close(primary, model.primary(torch.cat([model.details(first), up], 1)))
    torch.testing.assert_close(auxiliary, model.auxiliary(third))
    assert [branch[0].dilation[0] for branch in model.aspp.branches] == [1, 12, 24, 36]


def test_dropout_hides_features_in_training_only() -> None:
    torch.manual_seed(0)
    for name in NAMES:
        model = build_model(ModelConfig(head=name, backbone="resnet18", width=8, dropout=0.5), 5)
        x = torch.randn(2, 3, 32, 48)
        model.eval()
        assert torch.equal(model(x).primary, model(x).primary)
        model.train()
        assert not torch.equal(model(x).primary, model(x).primary)


def test_branches_belong_to_deeplabv2() -> None:
    with pytest.raises(InputError, match="aspp_branches of fcn: found 2, expected 4"):
        build_model(ModelConfig(head="fcn", backbone="resnet18", aspp_branches=2), 5)
