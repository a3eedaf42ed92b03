"""pseudo_label: labels, confidences and histogram against float64, views, flips, thresholds, ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, random_map
from torch import Tensor

from udas_fast import ops
from udas_fast.ops import reference

EXACT = {"derandomize": True, "deadline": None, "database": None}
MARGIN = 1e-5  # where two probabilities, or one and its threshold, are closer than this, a label may differ


def probabilities(views: list[Tensor], size: tuple[int, int], options: dict[str, Any]) -> Tensor:
    """float64 ``[K, N, C, H, W]`` with flips undone."""
    table = reference.flip_table(options.get("flips"), len(views), len(views[0]), views[0].device)
    aligned = options.get("align_corners", False)
    full = [reference.interpolate(v.double(), size, aligned) / options.get("temperature", 1.0) for v in views]
    return torch.stack([reference.unflip(x.softmax(1), table, k) for k, x in enumerate(full)])


def certain(p: Tensor, options: dict[str, Any]) -> Tensor:
    """Pixels whose label does not depend on rounding: clear of ties between classes or views, and of thresholds."""
    if options.get("reduce") == "mean":
        p = p.mean(0, keepdim=True)
    views, n, classes, height, width = p.shape
    best = p.permute(1, 3, 4, 0, 2).reshape(n, height, width, views * classes).topk(2).values
    limit = options.get("threshold", 0.6)
    if isinstance(limit, Tensor):
        limit = limit.double()[p.amax(0).argmax(1)]
    return (best[..., 0] - best[..., 1] > MARGIN) & ((best[..., 0] - limit).abs() > MARGIN)


def check(views: list[Tensor], size: tuple[int, int], **options: Any) -> None:
    found = ops.pseudo_label(views, size, **options)
    expected = reference.pseudo_label([v.double() for v in views], size, **options)
    assert found.label.dtype == torch.uint8
    assert found.confidence.dtype == torch.float32
    torch.testing.assert_close(found.confidence.double(), expected.confidence, rtol=1e-5, atol=1e-6)
    safe = certain(probabilities(views, size, options), options)
    assert torch.equal(found.label[safe], expected.label[safe])
    # A pixel whose confidence rounds across the border of a bin, or whose label is not safe, moves one count.
    edge = (expected.confidence * 64 - (expected.confidence * 64).round()).abs() < 64 * MARGIN
    moved = int((found.histogram - expected.histogram).abs().sum())
    assert moved <= 2 * int((edge | ~safe).sum())
    assert int(found.histogram.sum()) == found.label.numel()


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.one_of(st.integers(1, 4), st.just(16)))
    n = draw(st.integers(1, 3))
    classes = draw(st.one_of(st.sampled_from([2, 11, 19]), st.integers(2, 30), st.just(256)))
    side = st.integers(1, 9)
    return {
        "shapes": [(n, classes, draw(side), draw(side)) for _ in range(count)],
        "size": (draw(st.integers(1, 70)), draw(st.integers(1, 70))),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "transposed", "sliced"])),
        "options": {
            "align_corners": draw(st.booleans()),
            "reduce": draw(st.sampled_from(["max", "mean"])),
            "temperature": draw(st.sampled_from([1.0, 0.5, 2.0])),
            "flips": draw(
                st.one_of(
                    st.none(),
                    st.lists(st.booleans(), min_size=count, max_size=count),
                    st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=count, max_size=count),
                )
            ),
        },
        "per_class": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, **EXACT)
@given(s=situations())
def test_matches_float64(device: str, s: dict[str, Any]) -> None:
    views = [
        random_map(shape, s["seed"] + k, dtype=s["dtype"], layout=s["layout"]).to(device)
        for k, shape in enumerate(s["shapes"])
    ]
    threshold: float | Tensor = 0.6
    if s["per_class"]:
        threshold = torch.linspace(0.2, 0.9, s["shapes"][0][1], device=device)
    check(views, s["size"], threshold=threshold, **s["options"])


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 19, 45, 80), (360, 640)), ((1, 150, 5, 31), (35, 241))],
    ids=["real", "many_classes"],
)
def test_real_size(device: str, reduce: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    views = [random_map(shape, k).to(device) for k in range(3)]
    check(views, size, reduce=reduce, flips=[False, True, False])


@pytest.mark.parametrize("device", DEVICES)
def test_ties_go_to_the_lowest_class_and_the_first_view(device: str) -> None:
    flat = torch.zeros((1, 6, 2, 3), device=device)
    assert bool((ops.pseudo_label([flat], (9, 7), threshold=0.0).label == 0).all())
    first = torch.zeros((1, 2, 2, 3), device=device)
    first[:, 1] = 2.0
    second = first.flip(1)  # just as sure of the other class, to the bit: two addends have one order
    assert bool((ops.pseudo_label([first, second], (9, 7)).label == 1).all())
    assert bool((ops.pseudo_label([second, first], (9, 7)).label == 0).all())


@pytest.mark.parametrize("device", DEVICES)
def test_the_surer_view_wins(device: str) -> None:
    unsure, sure = (torch.zeros((1, 3, 1, 1), device=device) for _ in range(2))
    unsure[:, 0], sure[:, 2] = 1.0, 4.0
    result = ops.pseudo_label([unsure, sure], (4, 4))
    assert bool((result.label == 2).all())
    torch.testing.assert_close(result.confidence, sure.softmax(1)[:, 2].expand(1, 4, 4))


@pytest.mark.parametrize("device", DEVICES)
def test_a_flipped_view_is_the_mirror_image(device: str) -> None:
    view = random_map((2, 5, 4, 6), 0).to(device)
    plain = ops.pseudo_label([view], (17, 31))
    mirrored = ops.pseudo_label([view.flip(-1)], (17, 31), flips=[True])
    torch.testing.assert_close(mirrored.confidence, plain.confidence)
    some = ops.pseudo_label([torch.stack((view[0].flip(-1), view[1]))], (17, 31), flips=[[True, False]])
    torch.testing.assert_close(some.confidence, plain.confidence)


@pytest.mark.parametrize("device", DEVICES)
def test_thresholds_keep_at_least_and_drop_below(device: str) -> None:
    view = torch.zeros((1, 2, 2, 2), device=device)
    view[0, 1] = 20.0  # probability 1 in float32
    assert bool((ops.pseudo_label([view], (5, 5), threshold=1.0).label == 1).all())
    dropped = ops.pseudo_label([view], (5, 5), threshold=1.5, ignore_index=7)
    assert bool((dropped.label == 7).all())
    assert int(dropped.histogram[1, 1, 63]) == 25
    strict = torch.tensor([0.0, 1.5], device=device)
    assert bool((ops.pseudo_label([view], (5, 5), threshold=strict).label == 255).all())
    assert bool((ops.pseudo_label([view.flip(1)], (5, 5), threshold=strict).label == 0).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_extreme_empty_and_nan(device: str, reduce: str) -> None:
    extreme = random_map((1, 5, 3, 4), 0).sign().mul(1e4).to(device)
    result = ops.pseudo_label([extreme, -extreme], (11, 13), reduce=reduce)
    assert bool(result.confidence.isfinite().all())
    empty = ops.pseudo_label([extreme[:0]], (11, 13), reduce=reduce)
    assert empty.label.shape == (0, 11, 13)
    assert int(empty.histogram.sum()) == 0
    spoilt = extreme.clone()
    spoilt[0, :, 0, 0] = float("nan")
    result = ops.pseudo_label([spoilt], (11, 13), reduce=reduce)
    assert int(result.label[0, 0, 0]) == 255
    assert bool(result.confidence[0, 0, 0].isnan())
