"""FDA against a float64 reference on the full, shifted spectrum, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from udas_fast.data import Batch
from udas_fast.errors import InputError
from udas_fast.objectives import Step
from udas_fast.objectives.fda import match_fda
from udas_fast.objectives.mixing import MixingConfig, labelled_batches


def images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth gradients under noise, within 40 to 215, so that little is clipped."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    slopes = rng.uniform(-40, 40, (2, n, 3, 1, 1))
    picture = 128 + slopes[0] * rows + slopes[1] * columns + rng.normal(0, 8, (n, 3, height, width))
    return torch.from_numpy(picture.clip(40, 215).astype(np.uint8))


def reference(source: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
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
def test_equals_the_reference(size: tuple[int, int], beta: float) -> None:
    source, target = images(2, *size), images(2, *size, seed=1)
    want = reference(source.numpy(), target.numpy(), beta).clip(0, 255)
    # Rounding to 8 bits is at most 0.5 away; float32 transforms of these sizes stay within 0.001.
    assert np.abs(match_fda(source, target, beta).numpy() - want).max() < 0.501
    assert np.abs(want - source.numpy()).max() > 2  # and something was done


def test_what_changes_nothing() -> None:
    source, target = images(2, 32, 40), images(2, 32, 40, seed=1)
    assert torch.equal(match_fda(source, target, 0.0), source)
    assert torch.equal(match_fda(source, source, 0.1), source)
    assert match_fda(source[:0], target[:0]).shape == (0, 3, 32, 40)


def test_the_mean_is_the_targets_and_the_rest_of_the_spectrum_stays() -> None:
    source, target = images(1, 40, 40), images(1, 40, 40, seed=1)
    out = match_fda(source, target, 0.05).double()
    assert out.mean((2, 3)) == pytest.approx(target.double().mean((2, 3)), abs=0.1)
    before, after = torch.fft.fft2(source.double()), torch.fft.fft2(out)
    # Rounding adds noise of variance 1/12 to each of 1600 pixels: about 12 in a coefficient, here bounded by 6 σ.
    assert (before - after)[..., 3:-2, 3:-2].abs().max() < 6 * (1600 / 12) ** 0.5


def test_each_image_has_its_own_target_and_the_size_may_differ() -> None:
    source, target = images(2, 24, 30), images(2, 50, 20, seed=3)
    both = match_fda(source, target, 0.1)
    assert both.shape == source.shape
    for i in range(2):
        assert torch.equal(both[i : i + 1], match_fda(source[i : i + 1], target[i : i + 1], 0.1))


def test_the_setting_reaches_the_source_and_no_label(
    batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    config = MixingConfig(translate="fda", fda_beta=0.1, augment=False)
    out = labelled_batches(batches, config, make_step())
    source = batches["source"]
    assert torch.equal(out["seg"].image, match_fda(source.image, batches["unlabelled"].image, 0.1))
    assert torch.equal(out["seg"].label, source.label)
    with pytest.raises(ValueError, match="fda_beta"):
        replace(config, fda_beta=0.5)


def test_wrong_arguments() -> None:
    good = images(2, 8, 8)
    with pytest.raises(InputError, match="target: found 1 images, expected 2"):
        match_fda(good, good[:1])
    with pytest.raises(InputError, match="beta: found -0.1"):
        match_fda(good, good, -0.1)
