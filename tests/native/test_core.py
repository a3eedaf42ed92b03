"""The mathematics of a pixel (csrc/core) against float64, for any logits: properties, not examples."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.slow

IGNORED = -1
# Widths and magnitudes as networks have them, and beyond: softmax is exactly 0 or 1 for the largest.
scales = st.sampled_from([0.0, 1e-3, 1.0, 10.0, 80.0])
classes = st.integers(2, 40)
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=150, deadline=None)


def draw(maps: int, classes: int, scale: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((maps, classes)) * scale).astype(np.float32)


def kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (log_p - log_q)).sum()


def expected_loss(name: str, maps: Tensor, label: int, temperature: float) -> Tensor:
    """The loss of a pixel as its paper writes it; ``maps`` are float64."""
    logs = maps.log_softmax(1)
    if name == "cross_entropy":
        return -logs[0, label] if label >= 0 else maps.sum() * 0
    if name == "symmetric_kl":
        return kl(logs[0].exp(), logs[0], logs[1]) + kl(logs[1].exp(), logs[1], logs[0])
    if name == "ensemble_kl":
        log_m = (maps[0] + 0.5 * maps[1]).log_softmax(0).detach()
        return kl(log_m.exp(), log_m, logs[0]) + kl(log_m.exp(), log_m, logs[1])
    if name == "rectified_cross_entropy":
        variance = kl(logs[1].exp(), logs[1], logs[0])
        entropy = -logs[0, label] if label >= 0 else maps.sum() * 0
        return entropy * (-variance).exp() + variance
    if name == "distillation_kl":
        teacher = (maps[1:] / temperature).softmax(1).mean(0).detach()
        return kl(teacher, teacher.clamp_min(1e-37).log(), (maps[0] / temperature).log_softmax(0))
    return -(logs.exp() * logs).sum() / np.log(maps.shape[1])


LOSSES = {
    "cross_entropy": 1,
    "rectified_cross_entropy": 2,
    "symmetric_kl": 2,
    "ensemble_kl": 2,
    "distillation_kl": 3,
    "entropy": 1,
}


@pytest.mark.parametrize("name", LOSSES)
@examples
@given(classes=classes, scale=scales, seed=seeds, data=st.data())
def test_a_loss_and_its_gradient_are_those_of_float64(
    core: ModuleType, name: str, classes: int, scale: float, seed: int, data: st.DataObject
) -> None:
    maps = draw(LOSSES[name], classes, scale, seed)
    label = data.draw(st.integers(IGNORED, classes - 1), "label")
    weight = data.draw(st.sampled_from([0.0, 0.5, 3.0]), "weight")
    if name == "cross_entropy" and label == IGNORED:
        weight = 0.0  # as the loops of both devices have it
    temperature = data.draw(st.sampled_from([0.5, 1.0, 2.0]), "temperature") if "distil" in name else 1.0
    exact = torch.tensor(maps, dtype=torch.float64, requires_grad=True)
    loss = expected_loss(name, exact, label, temperature)
    (gradient,) = torch.autograd.grad(weight * loss, exact)
    found, without_gradient, gradients = getattr(core, name)(maps, label, weight, temperature)
    assert found == without_gradient
    size = 1 + float(
        exact.detach().abs().max()
    )  # at which differences of logits and sums over classes are rounded
    assert found == pytest.approx(loss.item(), rel=2e-5, abs=5e-6 * size)
    expected = gradient[: len(gradients)].numpy()
    np.testing.assert_allclose(gradients, expected, rtol=1e-4, atol=3e-6 * size * max(weight, 1e-9))


@examples
@given(classes=classes, scale=scales, seed=seeds, shift=st.floats(-50, 50))
def test_a_constant_added_to_every_logit_changes_nothing(
    core: ModuleType, classes: int, scale: float, seed: int, shift: float
) -> None:
    maps = draw(2, classes, scale, seed)
    for name in ("cross_entropy", "symmetric_kl", "ensemble_kl", "entropy"):
        used = maps[: LOSSES[name]]
        loss, _, gradients = getattr(core, name)(used)
        moved = getattr(core, name)(used + np.float32(shift))
        size = 1 + abs(shift) + float(np.abs(maps).max())
        assert moved[0] == pytest.approx(loss, rel=2e-5, abs=2e-6 * size)
        # The gradients of a loss that no constant changes sum to zero.
        np.testing.assert_allclose(gradients.sum(1), 0, atol=3e-6 * size)


@pytest.mark.parametrize("activation", [0, 1, 2])
@examples
@given(classes=classes, scale=scales, seed=seeds)
def test_an_activation_and_its_gradient_are_those_of_float64(
    core: ModuleType, activation: int, classes: int, scale: float, seed: int
) -> None:
    logits, incoming = draw(2, classes, scale, seed)
    exact = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    p = exact.softmax(0)
    out = [exact * 1.0, p, -p * (p + 1e-30).log() / np.log(classes)][activation]
    (gradient,) = torch.autograd.grad(out, exact, torch.tensor(incoming, dtype=torch.float64))
    found, found_gradient = core.activated(logits, incoming, activation)
    size = (1 + np.abs(logits).max()) * (1 + np.abs(incoming).max())
    np.testing.assert_allclose(found, out.detach().numpy(), rtol=1e-4, atol=1e-6 * size)
    np.testing.assert_allclose(found_gradient, gradient.numpy(), rtol=1e-4, atol=5e-6 * size)


@examples
@given(classes=classes, scale=scales, seed=seeds, temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_the_most_probable_class_is_the_first_of_the_largest(
    core: ModuleType, classes: int, scale: float, seed: int, temperature: float
) -> None:
    (logits,) = draw(1, classes, scale, seed)
    confidence, label = core.most_probable(logits, temperature)
    assert label == int(logits.argmax())
    exact = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(0).max()
    assert confidence == pytest.approx(float(exact), rel=1e-5 * (1 + scale))


@given(st.floats(0, 1, width=32))
def test_a_confidence_is_in_the_bin_that_holds_it(core: ModuleType, confidence: float) -> None:
    assert core.confidence_bin(confidence) == min(int(Fraction(confidence) * 64), 63)


sides = st.one_of(st.integers(1, 40), st.integers(1, 2**30))


@given(size=sides, out=sides, align_corners=st.booleans(), data=st.data())
def test_a_source_position_is_the_exact_one_rounded_once(
    core: ModuleType, size: int, out: int, align_corners: bool, data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, out - 1), "i")
    if align_corners:
        exact = Fraction(i * (size - 1), max(out - 1, 1))
    else:
        exact = max(Fraction((2 * i + 1) * size, 2 * out) - Fraction(1, 2), Fraction(0))
    low, high, fraction = core.source(i, size, out, align_corners)
    assert low == int(exact)
    assert high == min(low + 1, size - 1)
    assert fraction == pytest.approx(float(exact - low), rel=1e-6)


@given(size=st.integers(1, 30), out=st.integers(1, 60), align_corners=st.booleans())
def test_interpolation_is_that_of_torch(core: ModuleType, size: int, out: int, align_corners: bool) -> None:
    axis = np.random.default_rng(size).standard_normal(size)
    found = []
    for i in range(out):
        low, high, fraction = core.source(i, size, out, align_corners)
        found.append((1 - fraction) * axis[low] + fraction * axis[high])
    expected = functional.interpolate(
        torch.from_numpy(axis)[None, None, None], (1, out), mode="bilinear", align_corners=align_corners
    )
    np.testing.assert_allclose(found, expected[0, 0, 0].numpy(), rtol=1e-5, atol=1e-6)


@given(size=st.integers(1, 30), out=st.integers(1, 60), align_corners=st.booleans(), data=st.data())
def test_a_gradient_gathers_from_exactly_the_positions_that_read_it(
    core: ModuleType, size: int, out: int, align_corners: bool, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, size - 1), "row")
    lows = [core.source(i, size, out, align_corners)[0] for i in range(out)]
    first = core.first_position(row, size, out, align_corners)
    assert first == sum(low < row for low in lows)


@given(box=st.tuples(*[st.integers(-3, 9)] * 4), x=st.integers(0, 7), y=st.integers(0, 7))
def test_a_box_holds_its_first_row_and_not_its_last(
    core: ModuleType, box: tuple[int, int, int, int], x: int, y: int
) -> None:
    assert core.in_box(box, x, y) == (x in range(box[0], box[2]) and y in range(box[1], box[3]))


@given(
    value=st.integers(0, 255),
    mean=st.floats(0, 1),
    std=st.floats(0.05, 2),
    unit=st.sampled_from([1.0, 255.0]),
)
def test_a_normalised_pixel_is_that_of_float64(
    core: ModuleType, value: int, mean: float, std: float, unit: float
) -> None:
    scale, shift = core.affine(unit, mean, std)
    assert scale * value + shift == pytest.approx(
        (value / unit - mean) / std, rel=1e-6, abs=1e-6 * (1 + mean) / std
    )
