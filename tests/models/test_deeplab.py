"""DeepLabV2: published counts and sizes, the ASPP sum, initialisation, gradients through both heads."""

import numpy as np
import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import ASPP, DeepLabV2


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        model = DeepLabV2(19)
    assert count(model) == 44_601_560
    assert count(model.auxiliary) == 700_492
    assert count(model.primary) == 1_400_908


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1280, 720, (91, 161)), (1024, 512, (65, 129)), (640, 360, (46, 81))],
)
def test_output_sizes_are_the_published_ones(width, height, expected):
    with torch.device("meta"):
        primary, auxiliary = DeepLabV2(19)(torch.empty(2, 3, height, width))
    assert primary.shape == auxiliary.shape == (2, 19, *expected)


def dilated_sum(x: np.ndarray, branches: list[tuple[int, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Σ_r (W_r ∗_r x + b_r) by the definition, float64; x [inputs, h, w]."""
    _, h, w = x.shape
    total = 0.0
    for rate, weight, bias in branches:
        padded = np.pad(x, ((0, 0), (rate, rate), (rate, rate)))
        y = np.broadcast_to(bias[:, None, None], (len(bias), h, w)).copy()
        for i in range(3):
            for j in range(3):
                shifted = padded[:, i * rate : i * rate + h, j * rate : j * rate + w]
                y += np.einsum("oc,chw->ohw", weight[:, :, i, j], shifted)
        total = total + y
    return total


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_aspp_is_the_sum_of_its_branches(branches):
    torch.manual_seed(0)
    aspp = ASPP(5, 3, branches).double()
    for conv in aspp.branches:
        torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 5, 28, 30, dtype=torch.float64)
    weights = [
        (rate, conv.weight.detach().numpy(), conv.bias.detach().numpy())
        for rate, conv in zip((6, 12, 18, 24), aspp.branches, strict=False)
    ]
    assert len(weights) == branches
    expected = np.stack([dilated_sum(image, weights) for image in x.numpy()])
    np.testing.assert_allclose(aspp(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_heads_start_from_small_normal_weights_and_zero_biases():
    torch.manual_seed(0)
    model = DeepLabV2(19, backbone="resnet18")
    for conv in (*model.auxiliary.branches, *model.primary.branches):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(conv.weight.mean().item()) < 2e-4
        assert not conv.bias.any()


def test_primary_reads_layer4_and_auxiliary_layer3():
    model = DeepLabV2(4, backbone="resnet18", width=8).eval()
    x = torch.randn(1, 3, 32, 32)
    *_, third, fourth = model.backbone(x)
    primary, auxiliary = model(x)
    torch.testing.assert_close(primary, model.primary(fourth))
    torch.testing.assert_close(auxiliary, model.auxiliary(third))


def test_gradients_reach_each_head_and_only_the_layers_below_it():
    model = DeepLabV2(4, backbone="resnet18", width=8)
    x = torch.randn(2, 3, 32, 32)

    def touched(loss) -> set[str]:
        model.zero_grad(set_to_none=True)
        loss.backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    by_primary = touched(model(x).primary.square().sum())
    by_auxiliary = touched(model(x).auxiliary.square().sum())
    names = {name for name, _ in model.named_parameters()}
    assert by_primary == {name for name in names if not name.startswith("auxiliary.")}
    assert by_auxiliary == {name for name in names if not name.startswith(("primary.", "backbone.layer4."))}


def test_odd_and_tiny_images_run():
    model = DeepLabV2(2, backbone="resnet18", width=4).eval()
    for h, w in ((1, 1), (17, 33)):
        primary, auxiliary = model(torch.randn(1, 3, h, w))
        assert primary.shape == auxiliary.shape
        assert primary.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes: found 1, expected 2 to 255"),
        ({"num_classes": 256}, "num_classes: found 256"),
        ({"num_classes": 19, "aspp_branches": 5}, "aspp_branches: found 5, expected 1 to 4"),
        ({"num_classes": 19, "aspp_branches": 0}, "aspp_branches: found 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        DeepLabV2(**arguments)


def test_output_stride_4_doubles_the_maps_and_has_the_same_parameters() -> None:
    image = torch.zeros(1, 3, 64, 96)
    models = [DeepLabV2(5, backbone="resnet18", width=8, output_stride=stride).eval() for stride in (8, 4)]
    assert [tuple(m(image).primary.shape[-2:]) for m in models] == [(9, 13), (16, 24)]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    with pytest.raises(InputError, match="output_stride of resnet18: found 12, expected 4, 8, 16 or 32"):
        DeepLabV2(5, backbone="resnet18", output_stride=12)
