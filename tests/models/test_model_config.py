"""Configuration of a model in a recipe, and image normalisation."""

import dataclasses

import numpy as np
import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import DeepLabV2, DomainBatchNorm2d, ModelConfig, build_model, normalize


def test_default_is_the_papers_network():
    with torch.device("meta"):
        model = build_model(ModelConfig(), 19)
    assert sum(p.numel() for p in model.parameters()) == 44_601_560


def test_every_field_reaches_the_model():
    model = build_model(ModelConfig(backbone="resnet18", width=8, norm="domain", aspp_branches=2), 7)
    assert isinstance(model, DeepLabV2)
    assert model.num_classes == 7
    assert len(model.primary.branches) == len(model.auxiliary.branches) == 2
    assert isinstance(model.backbone.bn1, DomainBatchNorm2d)
    assert model.backbone.conv1.out_channels == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "deeplabv2"},
        {"head": "deeplabv9"},
        {"backbone": "vgg"},
        {"width": 0},
        {"norm": "none"},
        {"aspp_branches": 5},
        {"depth": 3},
    ],
)
def test_unknown_keys_and_values_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        ModelConfig(**fields)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 3


def test_normalisation_is_imagenets():
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(1, 3, 4, 5)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (image.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normalize(image).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert normalize(image).dtype == torch.float32


@pytest.mark.parametrize(
    "image",
    [torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)],
)
def test_normalisation_refuses_anything_but_images(image):
    with pytest.raises(InputError, match=r"image: found .*expected torch.uint8 \[N, 3, H, W\]"):
        normalize(image)
