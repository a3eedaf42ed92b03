"""Discriminators: published parameter counts, output sizes, independence of images and pixels."""

import pytest
import torch
import torch.nn.functional as F

from udas_fast.errors import InputError
from udas_fast.models import Discriminator, MultiScaleDiscriminator, PixelDiscriminator


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
    with pytest.raises(
        InputError, match=r"discriminator input: found \[.*expected \[N, 5, H >= 32, W >= 32\]"
    ):
        Discriminator(5, width=8)(torch.randn(shape))


def test_multi_scale_count_layer_by_layer():
    def conv(inputs, outputs, side=3):
        return outputs * (inputs * side * side + 1)

    with torch.device("meta"):
        model = MultiScaleDiscriminator(19)
    # MRNet: 19-32 (stride 2), 32-32, 32-32 (2), 32-32, 32-64 (2), 4 residual blocks of 64, 1x1 to 1.
    one = conv(19, 32) + 3 * conv(32, 32) + conv(32, 64) + 8 * conv(64, 64) + conv(64, 1, 1)
    assert sum(p.numel() for p in model.parameters()) == 3 * one == 1_041_699


def test_each_scale_sees_half_the_size_of_the_one_before():
    torch.manual_seed(0)
    model = MultiScaleDiscriminator(5, width=4)
    x = torch.randn(2, 5, 64, 96).softmax(1)
    answers = model(x)
    assert [tuple(a.shape) for a in answers] == [(2, 1, 8, 12), (2, 1, 4, 6), (2, 1, 2, 3)]
    # Averages of 3x3 at stride 2, of the pixels inside the image: ones stay ones at the border.
    halved = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2) / F.avg_pool2d(
        F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, 2
    )
    torch.testing.assert_close(answers[1], model.scales[1](halved))
    with pytest.raises(InputError, match=r"discriminator input: .*expected \[N, 5, H >= 32, W >= 32\]"):
        model(x[..., :31])


def test_pixel_discriminator_judges_each_pixel_alone():
    with torch.device("meta"):
        model = PixelDiscriminator(19)
    # CyCADA's code: 1x1 convolutions 19-512-256-2.
    assert sum(p.numel() for p in model.parameters()) == 19 * 512 + 512 + 512 * 256 + 256 + 256 * 2 + 2
    model, x = PixelDiscriminator(5, width=8).eval(), torch.randn(2, 5, 6, 7)
    whole = model(x)
    assert whole.shape == (2, 1, 6, 7)
    torch.testing.assert_close(model(x[..., 2:3, 4:5]), whole[..., 2:3, 4:5])
