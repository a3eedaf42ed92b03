"""LAB and FDA matching against float64 references: CIE's formulas and known colours, the full shifted spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from udas_fast.data.style import lab_to_rgb, match_fda, match_lab, rgb_to_lab
from udas_fast.errors import InputError


def reference_lab(rgb: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] → LAB float64: IEC 61966-2-1 and CIE 15 with D65 (0.95047, 1, 1.08883)."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    t = linear @ matrix.T / [0.95047, 1.0, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


def images(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (shape[0], 3, *shape[1:]), dtype=torch.uint8, generator=generator)


def lab_of(batch: torch.Tensor) -> np.ndarray:
    return reference_lab(batch.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((128, 128, 128), (53.59, 0.0, 0.0)),
    ],
)
def test_published_colours(rgb, lab):
    pixel = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    assert rgb_to_lab(pixel).flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_lab_equals_the_reference_and_its_inverse_is_exact():
    batch = images(2, 40, 50)
    found = rgb_to_lab(batch)
    assert found.dtype == torch.float32
    assert np.abs(found.permute(0, 2, 3, 1).numpy() - lab_of(batch)).max() < 2e-3
    assert torch.equal(lab_to_rgb(found), batch)
    greys = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(lab_to_rgb(rgb_to_lab(greys)), greys)


def test_lab_statistics_become_the_targets():
    # Narrow ranges, so that nothing is clipped; the rest is rounding to 8 bits.
    source = images(3, 60, 70, low=100, high=150)
    target = torch.stack([images(1, 50, 40, low=low, high=low + 40, seed=low)[0] for low in (70, 110, 150)])
    out = match_lab(source, target)
    assert (out.dtype, out.shape) == (torch.uint8, source.shape)
    for i in range(3):
        found, expected = lab_of(out)[i].reshape(-1, 3), lab_of(target)[i].reshape(-1, 3)
        assert found.mean(0) == pytest.approx(expected.mean(0), abs=0.05)
        assert found.std(0) == pytest.approx(expected.std(0), abs=0.05)


def test_lab_leaves_an_image_in_its_own_style_unchanged():
    batch = images(2, 30, 30)
    assert (match_lab(batch, batch).int() - batch.int()).abs().max() <= 1


def test_lab_gives_each_image_its_own_target_and_the_size_may_differ():
    source, target = images(2, 20, 30), images(2, 50, 10, low=60, high=120, seed=5)
    both = match_lab(source, target)
    for i in range(2):
        assert torch.equal(both[i : i + 1], match_lab(source[i : i + 1], target[i : i + 1]))


def test_a_grey_source_gets_the_targets_tint_and_no_colour_noise():
    grey = images(1, 30, 30, low=80, high=160)[:, :1].expand(-1, 3, -1, -1)
    target = images(1, 30, 30, low=60, high=140, seed=1)
    target[:, 2] = 30
    found = lab_of(match_lab(grey, target))[0].reshape(-1, 3)
    expected = lab_of(target)[0].reshape(-1, 3)
    assert found[:, 1:].mean(0) == pytest.approx(expected[:, 1:].mean(0), abs=1.5)
    assert found[:, 1:].std(0).max() < 5 < expected[:, 1:].std(0).max()


def test_lab_extremes_stay_in_range():
    black, white = (
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.full((1, 3, 8, 8), 255, dtype=torch.uint8),
    )
    assert torch.equal(match_lab(black, white), white)
    assert torch.equal(match_lab(white, black), black)
    match_lab(images(1, 8, 8), white)
    assert match_lab(images(2, 8, 8)[:0], images(2, 8, 8)[:0]).shape == (0, 3, 8, 8)


def test_autocast_does_not_change_lab():
    source, target = images(1, 20, 20), images(1, 20, 20, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(match_lab(source, target), match_lab(source, target))
        inside = match_lab(source, target)
    assert torch.equal(inside, match_lab(source, target))


def test_wrong_arguments_of_lab():
    good = images(2, 4, 4)
    with pytest.raises(InputError, match="target: found 1 images, expected 2"):
        match_lab(good, good[:1])
    with pytest.raises(InputError, match=r"source: found torch.float32"):
        match_lab(good.float(), good)
    with pytest.raises(InputError, match=r"target: found torch.uint8 \(3, 4, 4\)"):
        match_lab(good, good[0])


def smooth_images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth gradients under noise, within 40 to 215, so that little is clipped."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    slopes = rng.uniform(-40, 40, (2, n, 3, 1, 1))
    picture = 128 + slopes[0] * rows + slopes[1] * columns + rng.normal(0, 8, (n, 3, height, width))
    return torch.from_numpy(picture.clip(40, 215).astype(np.uint8))


def reference_fda(source: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
    """Equation 4 as the public code computes it: full spectrum, low frequencies in the middle; float64."""
    spectrum, expected = (np.fft.fft2(x.astype(np.float64), axes=(-2, -1)) for x in (source, target))
    amplitude = np.fft.fftshift(np.abs(spectrum), axes=(-2, -1))
    expected = np.fft.fftshift(np.abs(expected), axes=(-2, -1))
    height, width = source.shape[-2:]
    reach = int(np.floor(min(height, width) * beta))
    rows = slice(height // 2 - reach, height // 2 + reach + 1)
    columns = slice(width // 2 - reach, width // 2 + reach + 1)
    amplitude[..., rows, columns] = expected[..., rows, columns]
    amplitude = np.fft.ifftshift(amplitude, axes=(-2, -1))
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum)), axes=(-2, -1)).real


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
@pytest.mark.parametrize("beta", [0.01, 0.05, 0.2])
def test_fda_equals_the_reference(size: tuple[int, int], beta: float) -> None:
    source, target = smooth_images(2, *size), smooth_images(2, *size, seed=1)
    expected = reference_fda(source.numpy(), target.numpy(), beta).clip(0, 255)
    # Rounding to 8 bits is at most 0.5 away; float32 transforms of these sizes stay within 0.001.
    assert np.abs(match_fda(source, target, beta).numpy() - expected).max() < 0.501
    assert np.abs(expected - source.numpy()).max() > 2  # and something was done


def test_fda_of_zero_size_or_own_style_changes_nothing() -> None:
    source, target = smooth_images(2, 32, 40), smooth_images(2, 32, 40, seed=1)
    assert torch.equal(match_fda(source, target, 0.0), source)
    assert torch.equal(match_fda(source, source, 0.1), source)
    assert match_fda(source[:0], target[:0]).shape == (0, 3, 32, 40)


def test_fda_takes_the_targets_mean_and_keeps_the_rest_of_the_spectrum() -> None:
    source, target = smooth_images(1, 40, 40), smooth_images(1, 40, 40, seed=1)
    out = match_fda(source, target, 0.05).double()
    assert out.mean((2, 3)) == pytest.approx(target.double().mean((2, 3)), abs=0.1)
    before, after = torch.fft.fft2(source.double()), torch.fft.fft2(out)
    # Rounding adds noise of variance 1/12 to each of 1600 pixels: about 12 in a coefficient, here bounded by 6 σ.
    assert (before - after)[..., 3:-2, 3:-2].abs().max() < 6 * (1600 / 12) ** 0.5


def test_fda_gives_each_image_its_own_target_and_the_size_may_differ() -> None:
    source, target = smooth_images(2, 24, 30), smooth_images(2, 50, 20, seed=3)
    both = match_fda(source, target, 0.1)
    assert both.shape == source.shape
    for i in range(2):
        assert torch.equal(both[i : i + 1], match_fda(source[i : i + 1], target[i : i + 1], 0.1))


def test_wrong_arguments_of_fda() -> None:
    good = smooth_images(2, 8, 8)
    with pytest.raises(InputError, match="target: found 1 images, expected 2"):
        match_fda(good, good[:1])
    with pytest.raises(InputError, match="beta: found -0.1"):
        match_fda(good, good, -0.1)
