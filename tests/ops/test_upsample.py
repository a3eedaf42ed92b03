"""upsample, forward and back, against the float64 reference, PyTorch's own functions and values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    ACTIVATIONS,
    DEVICES,
    EXACT,
    LAYOUTS,
    TOLERANCE,
    assert_close,
    map_situations,
    random_map,
    upsampled_with_gradient,
)
from torch import Tensor

from udas_fast import ops
from udas_fast.ops import _library, reference


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """Logits, options, and how the incoming gradient lies in memory."""
    return draw(map_situations(samples=0)) | {"incoming_layout": draw(st.sampled_from(LAYOUTS))}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=60, **EXACT)
@given(s=situations())
def test_values_and_gradient_match_float64(activation: str, device: str, s: dict[str, Any]) -> None:
    n, classes, h, w = s["shape"]
    logits = random_map(s["shape"], s["seed"], dtype=s["dtype"], layout=s["layout"]).to(device)
    incoming = random_map((n, classes, *s["size"]), s["seed"] + 1, layout=s["incoming_layout"]).to(device)
    options = {"activation": activation, "align_corners": s["align_corners"]}
    found, gradient = upsampled_with_gradient(ops, logits, incoming, **options)
    expected, expected_gradient = upsampled_with_gradient(
        reference, logits.double(), incoming.double(), **options
    )
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert_close(found, expected, 1e-5)
    assert gradient.dtype == logits.dtype
    crowd = s["size"][0] * s["size"][1] / (h * w) + 1  # pixels that add up in one low-resolution gradient
    assert_close(gradient, expected_gradient, TOLERANCE[s["dtype"]], 1e-6 * crowd)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("low", "full"),
    [((1, 19, 23, 40), (1, 19, 180, 320)), ((1, 150, 3, 57), (1, 150, 17, 450))],
    ids=["real", "many_classes"],
)
def test_real_size(activation: str, device: str, low: tuple[int, ...], full: tuple[int, ...]) -> None:
    logits = random_map(low, 0).to(device)
    incoming = random_map(full, 1, layout="channels_last").to(device)
    found, gradient = upsampled_with_gradient(ops, logits, incoming, activation=activation)
    expected, expected_gradient = upsampled_with_gradient(
        reference, logits.double(), incoming.double(), activation=activation
    )
    assert_close(found, expected, 1e-6, floor=0)
    assert_close(gradient, expected_gradient, 1e-5, floor=0)


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_what_pytorch_composes(device: str) -> None:
    """F.interpolate, softmax and AdvEnt's line as published, independently of the reference."""
    logits = random_map((2, 5, 3, 4), 0).double()
    full = F.interpolate(logits, (7, 9), mode="bilinear", align_corners=True)
    p = full.softmax(1)
    information = -torch.mul(p, torch.log2(p + 1e-30)) / math.log2(5)
    for activation, expected in (("none", full), ("softmax", p), ("self_information", information)):
        for module, tolerance in ((ops, 1e-6), (reference, 1e-12)):
            given = (logits.float() if module is ops else logits).to(device)
            found = module.upsample(given, (7, 9), activation=activation, align_corners=True)
            torch.testing.assert_close(found.double().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_values_by_hand(device: str) -> None:
    """Equal scores: p = 1/4, and the information −1/4·log2(1/4) / log2 4 = 1/4. Scores 0 and log 3: 1/4, 3/4."""
    even = torch.zeros((1, 4, 1, 1), device=device)
    for activation, value in (("none", 0.0), ("softmax", 0.25), ("self_information", 0.25)):
        found = ops.upsample(even, (2, 3), activation=activation)
        torch.testing.assert_close(found, torch.full((1, 4, 2, 3), value, device=device))
    two = torch.tensor([0.0, math.log(3)], device=device).view(1, 2, 1, 1)
    found = ops.upsample(two, (1, 1), activation="self_information").flatten().cpu()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.75 * math.log2(4 / 3)]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ["softmax", "self_information"])
def test_a_sure_prediction_has_finite_values_and_gradients(activation: str, device: str) -> None:
    logits = torch.tensor([200.0, 0.0, -200.0], device=device).view(1, 3, 1, 1)
    incoming = torch.ones((1, 3, 2, 2), device=device)
    incoming[:, 0] = 2
    found, gradient = upsampled_with_gradient(ops, logits, incoming, activation=activation)
    sure = [1.0, 0.0, 0.0] if activation == "softmax" else [0.0, 0.0, 0.0]
    expected = torch.tensor(sure, device=device).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-30)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-30)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nan_stays_a_nan_where_it_is_read(activation: str, device: str) -> None:
    logits = random_map((1, 4, 3, 5), 0)
    logits[0, 1, 0, 0] = float("nan")
    found = ops.upsample(logits.to(device), (30, 50), activation=activation)
    assert bool(found[0, 1, 0, 0].isnan())
    assert bool(found[..., 20:, 30:].isfinite().all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradcheck(activation: str, device: str) -> None:
    """The gradient against differences of the operator itself, in float32: wide steps, loose bounds."""
    logits = random_map((1, 3, 2, 3), 0, scale=1).to(device).requires_grad_()

    def value(leaf: Tensor) -> Tensor:
        return ops.upsample(leaf, (5, 6), activation=activation).double()

    assert torch.autograd.gradcheck(value, logits, eps=1e-2, atol=5e-3, rtol=1e-2, nondet_tol=0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_gradcheck(activation: str) -> None:
    logits = random_map((1, 3, 2, 3), 0, scale=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference.upsample(x, (5, 6), activation=activation), logits)


@pytest.mark.skipif(bool(_library.REASON), reason="nothing compiled")
def test_only_the_low_resolution_logits_are_kept() -> None:
    logits = random_map((1, 4, 3, 5), 0).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ops.upsample(logits, (30, 50))
    assert kept == [logits.shape]


def test_an_expanded_gradient() -> None:
    """A sum hands back one number for all pixels, of stride 0."""
    logits = random_map((1, 4, 3, 5), 0).requires_grad_()
    seen = ops.upsample(logits, (30, 50))
    (gradient,) = torch.autograd.grad(seen.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-4)  # Σp = 1 everywhere


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_without_a_break(activation: str, device: str) -> None:
    def step(leaf: Tensor) -> Tensor:
        return ops.upsample(leaf * 2, (7, 9), activation=activation).square().mean()

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = random_map((2, 5, 3, 4), 0).to(device).requires_grad_()
        value = function(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_than_two_to_the_31_elements(device: str) -> None:
    """256 classes at 2900² are 2.15e9 numbers, 8.6 GB; the last rows are those of a small crop."""
    if device == "cpu":
        pytest.skip("too much memory for a machine that tests; the offsets are the same 64-bit sums")
    logits = random_map((1, 256, 2, 2), 0).to(device)
    found = ops.upsample(logits, (2900, 2900), activation="none")
    torch.testing.assert_close(found[0, :, -1, -1], logits[0, :, -1, -1])
