"""Strong photometric views against float64 computations, their probabilities, and what they leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from udas_fast.data.strong_view import StrongConfig, apply_strong, draw_strong
from udas_fast.errors import InputError

LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
OFF = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0}
ON = {"jitter_probability": 1.0, "blur_probability": 0.0}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int = 4, size: tuple[int, int] = (12, 16), low: int = 100, high: int = 156) -> Tensor:
    """Images whose changed values stay within 0 to 255."""
    return torch.randint(low, high, (n, 3, *size), dtype=torch.uint8, generator=_generator(7))


def _luma(x: Tensor) -> Tensor:
    return (LUMA[:, None, None] * x).sum(0)


def _turn_hue(x: Tensor, angle: float) -> Tensor:
    """Turn the chroma of RGB ``x`` [3, H, W] by ``angle`` in the plane of I and Q (FCC's NTSC)."""
    i, q = [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]
    to_yiq = np.array([LUMA.tolist(), i, q])
    turn = np.array(
        [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    )
    return torch.einsum("ij,jhw->ihw", torch.from_numpy(np.linalg.inv(to_yiq) @ turn @ to_yiq), x)


CHANGES = {
    "brightness": lambda x, f: x * (1 + f),
    "contrast": lambda x, f: (1 + f) * x - f * _luma(x).mean(),
    "saturation": lambda x, f: (1 + f) * x - f * _luma(x),
    "hue": lambda x, f: _turn_hue(x, 2 * math.pi * f),
}


@pytest.mark.parametrize(
    "order", [list(CHANGES), list(reversed(CHANGES)), ["hue", "contrast", "saturation", "brightness"]]
)
def test_jitter_is_its_four_changes_in_any_order(order: list[str]) -> None:
    config = StrongConfig(jitter=(0.15, 0.2, 0.25, 0.1), **ON)
    images = _images()
    found = apply_strong(images, draw_strong(4, config, _generator(3)))
    factors = 2 * torch.rand(4, 8, generator=_generator(3))[:, :4] - 1
    for image, factor, changed in zip(images, factors.tolist(), found, strict=True):
        amounts = dict(zip(CHANGES, (f * s for f, s in zip(factor, config.jitter, strict=True)), strict=True))
        x = image.double()
        for name in order:
            x = CHANGES[name](x, amounts[name])
        assert x.min() > 0
        assert x.max() < 255
        assert (changed.double() - x).abs().max() < 0.51  # rounding
        assert not torch.equal(changed, image)


def test_values_are_clipped() -> None:
    images = _images(low=0, high=256)
    found = apply_strong(images, draw_strong(4, StrongConfig(jitter=(1, 0, 0, 0), **ON), _generator()))
    factors = 2 * torch.rand(4, 8, generator=_generator())[:, :1, None, None]
    assert (found.double() - (images * factors).clamp(max=255)).abs().max() < 0.51
    assert factors.max() > 1.1


@pytest.mark.parametrize("value", [0, 255])
def test_blur_leaves_black_and_white_images_alone(value: int) -> None:
    images = torch.full((64, 3, 20, 30), value, dtype=torch.uint8)
    drawn = draw_strong(
        64, StrongConfig(jitter=(0, 0, 0, 0), blur=(0.1, 2.0), blur_probability=1), _generator()
    )
    assert torch.equal(apply_strong(images, drawn), images)


def test_blur_is_a_gaussian_of_the_drawn_width() -> None:
    config = StrongConfig(blur=(0.3, 1.15), **{**OFF, "blur_probability": 1.0})
    image = torch.zeros(6, 3, 15, 17, dtype=torch.uint8)
    image[..., 7, 8] = 255
    found = apply_strong(image, draw_strong(6, config, _generator()))
    sigmas = 0.3 + torch.rand(6, 8, generator=_generator())[:, 4].double() * 0.85
    y, x = torch.meshgrid(torch.arange(-7, 8), torch.arange(-8, 9), indexing="ij")
    for blurred, sigma in zip(found, sigmas, strict=True):
        weights = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
        assert (
            blurred.double() - 255 * weights / weights.sum()
        ).abs().max() < 1.0  # and of what is cut off at 3 σ
    flat = torch.full((6, 3, 1, 5), 93, dtype=torch.uint8)  # the border's pixels are repeated
    assert torch.equal(apply_strong(flat, draw_strong(6, config, _generator())), flat)


def test_grey_images_have_equal_channels() -> None:
    found = apply_strong(
        _images(), draw_strong(4, StrongConfig(**{**OFF, "grey_probability": 1.0}), _generator())
    )
    assert (found.int().amax(1) - found.int().amin(1)).max() <= 1


@pytest.mark.parametrize("part", [0.8, 0.3])
def test_each_change_happens_as_often_as_its_probability(part: float) -> None:
    config = StrongConfig(
        jitter_probability=part, blur=(0.5, 1.0), blur_probability=1 - part, grey_probability=0.1
    )
    drawn, n = draw_strong(20_000, config, _generator()), 20_000
    matrix, taps = drawn[:, :9], drawn[:, 12:]
    grey = (matrix.view(n, 3, 3) - matrix.view(n, 3, 3)[:, :1]).abs().amax((1, 2)) < 1e-6
    assert grey.float().mean() == pytest.approx(0.1, abs=0.01)
    changed = (matrix != torch.eye(3).flatten()).any(1)
    assert changed[~grey].float().mean() == pytest.approx(part, abs=0.015)
    assert (taps[:, taps.shape[1] // 2] < 1).float().mean() == pytest.approx(1 - part, abs=0.015)


def test_the_defaults_are_dacs_and_daformers_probabilities() -> None:
    # DAFormer's color_jitter_probability 0.2 is compared as U > 0.2.
    assert (StrongConfig().jitter_probability, StrongConfig().blur_probability) == (0.8, 0.5)
    assert StrongConfig().blur == (0.15, 1.15)


def test_an_image_without_a_change_is_the_same_to_the_bit() -> None:
    images = torch.randint(0, 256, (3, 3, 9, 11), dtype=torch.uint8, generator=_generator())
    assert torch.equal(apply_strong(images, draw_strong(3, StrongConfig(**OFF), _generator())), images)


def test_precision_and_neighbours_change_nothing() -> None:
    images, drawn = _images(), draw_strong(4, StrongConfig(), _generator())
    plain = apply_strong(images, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply_strong(images, drawn), plain)
    for i in range(4):
        assert (apply_strong(images[i : i + 1], drawn[i : i + 1]).int() - plain[i : i + 1]).abs().max() <= 1


def test_one_probability_does_not_move_other_changes() -> None:
    all_blurred, none = (
        draw_strong(50, StrongConfig(blur_probability=p), _generator())[:, :12] for p in (1.0, 0.0)
    )
    assert torch.equal(all_blurred, none)


def test_wrong_values_are_refused() -> None:
    drawn = draw_strong(2, StrongConfig(), _generator())
    with pytest.raises(InputError, match=r"images: found torch.float32 .*, expected uint8 \[N, 3, H, W\]"):
        apply_strong(torch.zeros(2, 3, 4, 4), drawn)
    with pytest.raises(InputError, match=r"blur: found \(2, 1\), expected \(lowest, highest\)"):
        StrongConfig(blur=(2.0, 1.0))
    with pytest.raises(InputError, match="jitter_probability"):
        StrongConfig(jitter_probability=1.2)
    with pytest.raises(InputError, match="jitter"):
        StrongConfig(jitter=(0.2, 0.2, 0.2, 0.6))
