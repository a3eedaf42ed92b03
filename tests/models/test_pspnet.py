"""PSPNet: parameter counts of the published code, the pooling of parts, and inputs of its heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from udas_fast.models import PSPNet
from udas_fast.models.pspnet import BINS, pooling


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_heads_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = PSPNet(19)
    # hszhao/semseg, PSPNet(layers=101, classes=19): ppm 4,198,400, cls 18,885,139, aux 2,364,691. Its branch of the
    # whole image has a norm, 1024 numbers, where a bias of 512 is here.
    assert _count(model.pyramid) == 4_198_400 - 1024 + 512
    assert _count(model.primary) == 18_885_139
    assert _count(model.auxiliary) == 2_364_691


@pytest.mark.parametrize("size", [(6, 6), (23, 17), (4, 90), (1, 2)])
def test_parts_are_those_of_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size).double()
    for bins in BINS:
        rows, columns = (pooling(side, bins, x.device).double() for side in size)
        found = rows @ x @ columns.mT
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, bins), rtol=1e-6, atol=1e-6)


def test_the_classifier_sees_features_and_the_means_of_parts() -> None:
    torch.manual_seed(0)
    model = PSPNet(5, backbone="resnet18", width=8).eval()
    x = torch.randn(2, 3, 64, 96)
    *_, third, fourth = model.backbone(x)
    seen = [fourth]
    for bins, branch in zip((1, 2, 3, 6), model.pyramid.branches, strict=True):
        means = branch(F.adaptive_avg_pool2d(fourth, bins))
        seen.append(F.interpolate(means, fourth.shape[-2:], mode="bilinear", align_corners=True))
    primary, auxiliary = model(x)
    torch.testing.assert_close(primary, model.primary(torch.cat(seen, 1)))
    torch.testing.assert_close(auxiliary, model.auxiliary(third))
    assert torch.cat(seen, 1).shape[1] == 2 * fourth.shape[1]
