"""Backbones: published parameter counts, torchvision's names, Caffe's strides, initialisation."""

import math

import pytest
import torch
from torch import nn

from udas_fast.errors import InputError
from udas_fast.models import ResNet


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(*args, **kwargs) -> ResNet:
    with torch.device("meta"):
        return ResNet(*args, **kwargs)


# torchvision's counts less the 1000-class classifier
@pytest.mark.parametrize(
    ("name", "published", "classifier"),
    [
        ("resnet18", 11_689_512, 512 * 1000 + 1000),
        ("resnet50", 25_557_032, 2048 * 1000 + 1000),
        ("resnet101", 44_549_160, 2048 * 1000 + 1000),
    ],
)
def test_parameter_counts_are_the_published_ones(name, published, classifier):
    assert count(on_meta(name)) == published - classifier


def torchvision_keys(convolutions: int, depths: tuple[int, ...], shortcut_from: int) -> set[str]:
    """Return the names in a torchvision state dict, from its documented layout."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", *(f"bn1.{n}" for n in norm)}
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{layer}.{block}"
            for i in range(1, convolutions + 1):
                keys |= {f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{n}" for n in norm)}
            if block == 0 and layer >= shortcut_from:
                keys |= {f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{n}" for n in norm)}
    return keys


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("resnet18", (2, (2, 2, 2, 2), 2)),
        ("resnet50", (3, (3, 4, 6, 3), 1)),
        ("resnet101", (3, (3, 4, 23, 3), 1)),
    ],
)
def test_state_dict_has_torchvisions_names(name, layout):
    assert set(on_meta(name).state_dict()) == torchvision_keys(*layout)


def test_stride_sits_on_the_first_1x1_and_dilation_on_the_3x3():
    net = on_meta("resnet101")
    assert net.layer2[0].conv1.stride == (2, 2)
    assert net.layer2[0].conv2.stride == (1, 1)
    for layer, dilation in ((net.layer1, 1), (net.layer2, 1), (net.layer3, 2), (net.layer4, 4)):
        for block in layer:
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
    for layer in (net.layer1, net.layer3, net.layer4):
        strides = {c.stride for c in layer.modules() if isinstance(c, nn.Conv2d)}
        assert strides == {(1, 1)}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_both_outputs_are_at_stride_eight_with_the_channels_announced(name):
    net = ResNet(name, width=8)
    *_, third, fourth = net(torch.randn(1, 3, 65, 96))
    assert third.shape == (1, net.channels[2], 9, 13)
    assert fourth.shape == (1, net.channels[3], 9, 13)


@pytest.mark.parametrize(
    ("output_stride", "sides"),
    [(4, (31, 16, 16, 16)), (8, (16, 8, 8, 8)), (16, (16, 8, 4, 4)), (32, (16, 8, 4, 2))],
)
def test_strides_up_to_the_output_stride_then_dilation(output_stride, sides):
    # 61 pixels: every output stride rounds up to the same cells
    net = ResNet("resnet18", width=4, output_stride=output_stride).eval()
    assert tuple(m.shape[-1] for m in net(torch.randn(1, 3, 61, 61))) == sides
    assert tuple(61 // stride + 1 for stride in net.strides) == sides


def test_only_the_last_layer_is_dilated_at_output_stride_16():
    net = on_meta("resnet18", output_stride=16)
    for layer, dilation in ((net.layer1, 1), (net.layer2, 1), (net.layer3, 1), (net.layer4, 2)):
        assert {block.conv2.dilation for block in layer} == {(dilation, dilation)}


def test_layers_run_one_by_one_give_the_forward_pass():
    net = ResNet("resnet18", width=8).eval()
    x = torch.randn(1, 3, 32, 32)
    first = net.layer1(net.stem(x))
    second = net.layer2(first)
    third = net.layer3(second)
    torch.testing.assert_close(net(x), (first, second, third, net.layer4(third)), rtol=0, atol=0)


def test_convolutions_start_from_he_initialisation():
    torch.manual_seed(0)
    net = ResNet("resnet18")
    for conv in (net.conv1, net.layer2[0].conv1, net.layer4[1].conv2):
        expected = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(conv.weight.mean().item()) < 0.02 * expected


def test_a_narrow_net_is_small():
    assert count(on_meta("resnet18", width=16)) < count(on_meta("resnet18")) / 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet_101"}, "backbone: found 'resnet_101'.*did you mean 'resnet101'"),
        ({"norm": "bach"}, "norm: found 'bach'.*did you mean 'batch'"),
        ({"width": 0}, "width: found 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ResNet(**arguments)
