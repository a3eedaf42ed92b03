"""Every loss, forward and gradient, against the float64 reference on random shapes, layouts and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    DEVICES,
    EXACT,
    LOSS_PARAMS,
    TOLERANCE,
    Loss,
    assert_close,
    map_situations,
    oracle,
    random_labels,
    random_map,
    with_gradients,
)

from udas_fast import ops
from udas_fast.errors import InputError


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """Logits and options."""
    return draw(map_situations()) | {
        "reduction": draw(st.sampled_from(["mean", "mean", "sum", "none"])),
        "pixel_weight": draw(st.booleans()),
        "class_weight": draw(st.booleans()),
        "mask": draw(st.booleans()),
        "label_dtype": draw(st.sampled_from([torch.uint8, torch.int64])),
    }


def options_of(loss: Loss, s: dict[str, Any], device: str) -> dict[str, Any]:
    full = (s["shape"][0], *s["size"])
    generator = torch.Generator().manual_seed(s["seed"] + 7)
    options: dict[str, Any] = {"align_corners": s["align_corners"], "reduction": s["reduction"]}
    if s["pixel_weight"]:
        options["pixel_weight"] = (torch.rand(full, generator=generator) * 2).to(device)
    if s["class_weight"] and loss.name == "cross_entropy":
        options["weight"] = (torch.rand(s["shape"][1], generator=generator) + 0.1).to(device)
    if s["mask"] and loss.masked:
        options["mask"] = (torch.rand(full, generator=generator) < 0.5).to(device)
    return options


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSS_PARAMS)
@settings(max_examples=60, **EXACT)
@given(s=situations())
def test_loss_and_gradient_match_float64(loss: Loss, device: str, s: dict[str, Any]) -> None:
    n, classes, h, w = s["shape"]
    shapes = [s["shape"], (n, classes, max(h - 1, 1), w + 1)]  # the heads' sizes may differ
    maps = [
        random_map(shapes[i], s["seed"] + i, dtype=s["dtype"], layout=s["layout"]).to(device)
        for i in range(loss.maps)
    ]
    ignored = 0.2 if classes < 256 else 0.0
    target = random_labels((n, *s["size"]), classes, s["seed"], dtype=s["label_dtype"], ignored=ignored).to(
        device
    )
    options = options_of(loss, s, device)
    if classes == 256 and loss.labelled:
        options["ignore_index"] = 255 if s["label_dtype"] == torch.uint8 else 300
    found, gradients = with_gradients(loss, ops, maps, target, **options)
    expected, expected_gradients = oracle(loss, maps, target, **options)
    assert found.dtype == torch.float32
    assert_close(found, expected, 1e-5)
    crowd = s["size"][0] * s["size"][1] / (h * w) + 1  # pixels that add up in one low-resolution gradient
    floor = 1e-6 * (crowd if s["reduction"] != "mean" else 1)
    for gradient, expected_one, leaf in zip(gradients, expected_gradients, maps, strict=True):
        assert gradient.dtype == leaf.dtype
        assert_close(gradient, expected_one, TOLERANCE[leaf.dtype], floor)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSS_PARAMS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 19, 45, 80), (360, 640)), ((1, 150, 5, 31), (35, 241))],
    ids=["real", "many_classes"],
)
def test_real_size(loss: Loss, device: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    maps = [random_map(shape, i).to(device) for i in range(loss.maps)]
    target = random_labels((shape[0], *size), shape[1], 3).to(device)
    found, gradients = with_gradients(loss, ops, maps, target)
    expected, expected_gradients = oracle(loss, maps, target)
    assert_close(found, expected, 1e-6)
    for gradient, expected_one in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_one, 1e-5, floor=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSS_PARAMS)
def test_extreme_logits_stay_finite(loss: Loss, device: str) -> None:
    maps = [random_map((1, 5, 4, 6), i).sign().mul(1e4).to(device) for i in range(loss.maps)]
    target = random_labels((1, 13, 21), 5, 0).to(device)
    found, gradients = with_gradients(loss, ops, maps, target)
    expected, expected_gradients = oracle(loss, maps, target)
    # Interpolating 1e4 in float32 is off by 1e-3, and so is the logarithm of a probability.
    assert_close(found, expected, 1e-3, floor=1e-3)
    for gradient, expected_one in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_one, 1e-2, floor=1e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSS_PARAMS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(loss: Loss, device: str, reduction: str) -> None:
    maps = [random_map((0, 3, 4, 5), i).to(device) for i in range(loss.maps)]
    target = random_labels((0, 8, 10), 3, 0).to(device)
    found, gradients = with_gradients(loss, ops, maps, target, reduction=reduction)
    assert found.shape == ((0, 8, 10) if reduction == "none" else ())
    assert found.sum() == 0
    assert [g.shape for g in gradients] == [m.shape for m in maps]


@pytest.mark.parametrize("device", DEVICES)
def test_all_ignored_is_zero_and_not_nan(device: str) -> None:
    logits = random_map((2, 5, 3, 4), 0).to(device).requires_grad_()
    target = torch.full((2, 9, 11), 255, dtype=torch.uint8, device=device)
    loss = ops.cross_entropy(logits, target)
    loss.backward()
    assert loss == 0
    assert bool((logits.grad == 0).all())


@pytest.mark.parametrize("device", DEVICES)
def test_empty_mask_is_zero(device: str) -> None:
    student = random_map((1, 5, 3, 4), 0).to(device).requires_grad_()
    mask = torch.zeros((1, 6, 8), dtype=torch.bool, device=device)
    loss = ops.distillation_kl(student, [student * 2], (6, 8), mask=mask)
    loss.backward()
    assert loss == 0
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize("device", DEVICES)
def test_the_ignored_index_may_be_a_class(device: str) -> None:
    logits = random_map((1, 4, 3, 5), 0).to(device)
    target = random_labels((1, 7, 9), 4, 1, ignored=0).to(device)
    found = ops.cross_entropy(logits, target, ignore_index=0)
    full = torch.nn.functional.interpolate(logits, (7, 9), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(full, target.long(), ignore_index=0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_pixel_weight_lowers_the_loss_and_keeps_the_divisor(device: str) -> None:
    logits = random_map((1, 4, 3, 5), 0).to(device)
    target = random_labels((1, 7, 9), 4, 1).to(device)
    half = torch.full((1, 7, 9), 0.5, device=device)
    torch.testing.assert_close(
        ops.cross_entropy(logits, target, pixel_weight=half), 0.5 * ops.cross_entropy(logits, target)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_teachers_get_no_gradient(device: str) -> None:
    student, teacher = (random_map((1, 4, 3, 5), i).to(device).requires_grad_() for i in range(2))
    ops.distillation_kl(student, [teacher], (6, 10)).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_logit_gives_a_nan_loss(device: str) -> None:
    logits = random_map((1, 4, 3, 5), 0)
    logits[0, 1, 1, 1] = float("nan")
    target = random_labels((1, 7, 9), 4, 1, ignored=0)
    assert bool(ops.cross_entropy(logits.to(device), target.to(device)).isnan())


@pytest.mark.parametrize("bad_label", [4, 200, -1])
@pytest.mark.parametrize("device", DEVICES)
def test_a_label_out_of_range_is_found(device: str, bad_label: int) -> None:
    logits = random_map((1, 4, 3, 5), 0).to(device)
    target = random_labels((1, 70, 90), 4, 1, dtype=torch.int64)
    target[0, 68, 81] = bad_label
    for name in ("cross_entropy", "rectified_cross_entropy"):
        maps = [logits] * (1 if name == "cross_entropy" else 2)
        if device == "cpu":
            with pytest.raises(InputError, match=rf"^target: found label {bad_label}, expected 0 to 3"):
                getattr(ops, name)(*maps, target)
        else:
            assert bool(getattr(ops, name)(*maps, target.to(device)).isnan())
