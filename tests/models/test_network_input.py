"""The form in which networks take images, against float64: normalised, mixed, cast and laid out in one operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.engine.precision import build_amp, network_input
from udas_fast.models import ModelConfig, NetworkInput, Normalization, build_model
from udas_fast.testing import make_context

OWN = Normalization((0.3, 0.5, 0.7), (0.2, 0.25, 0.5))


def _normalized(image: Tensor, form: NetworkInput) -> Tensor:
    mean, std = (
        torch.tensor(x, dtype=torch.float64).view(3, 1, 1)
        for x in (form.normalization.mean, form.normalization.std)
    )
    return (image.double() / 255 - mean) / std


def _images(seed: int, label: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (2, 9, 14, 3), dtype=torch.uint8, generator=generator)
    labels = torch.full((2, 9, 14), label, dtype=torch.uint8)
    return Batch(image.permute(0, 3, 1, 2), labels, ["a", "b"])  # as DALI lays them out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_are_normalised_cast_and_laid_out(dtype: torch.dtype, channels_last: bool) -> None:
    form = NetworkInput(OWN, dtype, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tight = 2e-6 if dtype == torch.float32 else 1e-2
    for image in (_images(0, 0).image, _images(0, 0).image.contiguous()):
        found = form.normalize(image)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found.double(), _normalized(image, form), rtol=tight, atol=tight)
    assert form.normalize(image[:0]).shape == (0, 3, 9, 14)


def test_a_mix_is_the_networks_input_and_takes_no_second_normalisation() -> None:
    form = NetworkInput(OWN, channels_last=True)
    inside, outside = _images(1, 3), _images(2, 255)
    boxes = torch.tensor([[2, 1, 9, 7], [0, 0, 0, 0]], dtype=torch.int32)
    context = replace(make_context(), input=form)
    image, label = context.mix(inside, outside, boxes)
    mask = torch.zeros(2, 9, 14, dtype=torch.bool)
    mask[0, 1:7, 2:9] = True
    pixels = torch.where(mask[:, None], inside.image, outside.image)
    torch.testing.assert_close(image.double(), _normalized(pixels, form), rtol=2e-6, atol=2e-6)
    assert torch.equal(label, torch.where(mask, 3, 255).to(torch.uint8))

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert torch.equal(context.forward(Seen(), image).primary, image)
    assert torch.equal(context.forward(Seen(), pixels).primary, image)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_converts_images_to_what_the_first_convolution_takes(precision: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone="resnet18", width=16), 11).eval()
    amp = build_amp(precision, torch.device("cpu"))
    form = network_input(amp, model)
    assert form.normalization == model.normalization
    assert (form.dtype, form.channels_last) == (
        (torch.bfloat16, True) if precision == "bf16" else (torch.float32, False)
    )
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    wide = replace(form, dtype=torch.float32)
    with torch.no_grad(), amp.autocast():
        assert torch.equal(model(form.normalize(image)).primary, model(wide.normalize(image)).primary)
