"""CycleGAN's networks: published sizes, any image size, receptive field of a patch, and the range of images."""

from __future__ import annotations

import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import CycleGenerators, Generator, PatchDiscriminator, to_signed, to_uint8


def test_published_parameter_counts() -> None:
    assert sum(p.numel() for p in Generator().parameters()) == 11_378_179
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_764_737


def test_weights_start_from_a_normal_distribution_of_0_02_and_biases_from_zero() -> None:
    torch.manual_seed(0)
    for network in (Generator(16, 4), PatchDiscriminator(16)):
        weights = torch.cat([p.flatten() for p in network.parameters() if p.dim() == 4])
        biases = torch.cat([p for p in network.parameters() if p.dim() == 1])
        # Over 100,000 draws: five standard errors of the mean and of the deviation.
        assert weights.mean().abs() < 5 * 0.02 / len(weights) ** 0.5
        assert (weights.std() - 0.02).abs() < 5 * 0.02 / (2 * len(weights)) ** 0.5
        assert not biases.any()


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (30, 34), (9, 8)])
def test_any_size_is_returned_in_range(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    out = Generator(4, 1)(torch.rand(2, 3, *size) * 2 - 1)
    assert out.shape == (2, 3, *size)
    assert out.dtype == torch.float32
    assert out.abs().max() <= 1
    assert out.std() > 0


def test_an_odd_image_is_its_mirrored_continuation_cut_off() -> None:
    torch.manual_seed(0)
    network, image = Generator(4, 1), torch.rand(1, 3, 30, 33) * 2 - 1
    whole = torch.cat([image, image[:, :, [-2, -3]]], 2)
    whole = torch.cat([whole, whole[..., [-2, -3, -4]]], 3)
    assert whole.shape[-2:] == (32, 36)
    assert torch.equal(network(image), network(whole)[..., :30, :33])


def test_directions_have_their_own_weights() -> None:
    torch.manual_seed(0)
    networks, image = CycleGenerators(4, 1), torch.rand(1, 3, 16, 16)
    assert torch.equal(networks(image, "target"), networks.to_target(image))
    assert torch.equal(networks(image, "source"), networks.to_source(image))
    assert not torch.equal(networks(image, "source"), networks(image, "target"))


def test_the_receptive_field_is_70_pixels() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(2).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.InstanceNorm2d):  # its statistics are of the whole image
            layer.forward = lambda x: x
    image = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    answer = network(image)
    assert answer.shape == (1, 1, 14, 14)
    answer[0, 0, 7, 7].backward()
    seen = image.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_the_range_is_converted_without_loss() -> None:
    values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    signed = to_signed(values)
    assert (signed.min(), signed.max()) == (-1, 1)
    assert torch.equal(to_uint8(signed), values)


def test_half_precision_keeps_float32_results() -> None:
    torch.manual_seed(0)
    network, image = Generator(4, 1), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(image).dtype == torch.float32


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(InputError, match=r"generator input: found \[1, 3, 7, 20\]"):
        Generator(4, 1)(torch.zeros(1, 3, 7, 20))
    with pytest.raises(InputError, match=r"discriminator input: found \[1, 1, 40, 40\]"):
        PatchDiscriminator(4)(torch.zeros(1, 1, 40, 40))
