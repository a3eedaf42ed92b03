"""The discriminator: published count, size, one image's logits at a time."""

import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import Discriminator


def test_parameter_count_is_the_published_one():
    with torch.device("meta"):
        model = Discriminator(19)
    assert sum(p.numel() for p in model.parameters()) == 2_781_121


@pytest.mark.parametrize(("h", "w"), [(32, 32), (65, 100), (512, 1024)])
def test_output_is_one_channel_at_stride_32(h, w):
    with torch.device("meta"):
        assert Discriminator(19)(torch.empty(2, 19, h, w)).shape == (2, 1, h // 32, w // 32)


def test_width_scales_every_layer():
    model = Discriminator(5, width=8)
    assert [c.out_channels for c in (model.conv1, model.conv2, model.conv3, model.conv4)] == [8, 16, 32, 64]


def test_input_and_every_parameter_receive_gradients():
    model = Discriminator(5, width=8)
    x = torch.randn(1, 5, 64, 64).softmax(1).requires_grad_()
    model(x).sum().backward()
    assert x.grad.any()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 5, 31, 64), (5, 64, 64)])
def test_wrong_inputs_are_named(shape):
    with pytest.raises(InputError, match=r"discriminator input: found \[.*wanted \[N, 5, H >= 32, W >= 32\]"):
        Discriminator(5, width=8)(torch.randn(shape))
