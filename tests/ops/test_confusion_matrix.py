"""confusion_matrix: exact counts away from ties, ignored pixels, labels out of range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, random_labels, random_map

from udas_fast import ops
from udas_fast.errors import InputError
from udas_fast.ops import reference


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    n=st.integers(0, 3),
    classes=st.sampled_from([2, 3, 11, 19, 40, 255]),
    low=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    full=st.tuples(st.integers(1, 70), st.one_of(st.integers(1, 70), st.just(300))),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced"]),
    label_dtype=st.sampled_from([torch.uint8, torch.int64]),
    aligned=st.booleans(),
)
def test_matches_float64(
    device: str,
    n: int,
    classes: int,
    low: tuple[int, int],
    full: tuple[int, int],
    dtype: torch.dtype,
    layout: str,
    label_dtype: torch.dtype,
    aligned: bool,
) -> None:
    logits = random_map((n, classes, *low), 5, dtype=dtype, layout=layout).to(device)
    target = random_labels((n, *full), classes, 6, dtype=label_dtype).to(device)
    found = ops.confusion_matrix(logits, target, classes, align_corners=aligned)
    expected = reference.confusion_matrix(logits.double(), target, classes, align_corners=aligned)
    assert found.dtype == torch.int64
    assert int(found.sum()) == int((target != 255).sum())
    assert torch.equal(found.sum(1), expected.sum(1))
    if n:
        best = reference.interpolate(logits.double(), full, aligned).topk(2, dim=1).values
        tied = int((best[:, 0] - best[:, 1] < 1e-5).sum())
        assert int((found - expected).abs().sum()) <= 2 * tied


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_the_truth_and_ties_go_to_the_lowest_class(device: str) -> None:
    logits = torch.zeros((1, 4, 2, 2), device=device)
    logits[:, 3] = 1.0
    target = torch.tensor([[[1, 1], [2, 255]]], dtype=torch.uint8, device=device)
    expected = torch.zeros((4, 4), dtype=torch.int64, device=device)
    expected[1, 3], expected[2, 3] = 2, 1
    assert torch.equal(ops.confusion_matrix(logits, target, 4), expected)
    flat = ops.confusion_matrix(torch.zeros_like(logits), target, 4)
    assert int(flat[:, 0].sum()) == 3


@pytest.mark.parametrize("device", DEVICES)
def test_a_label_out_of_range(device: str) -> None:
    logits = random_map((1, 4, 3, 5), 0).to(device)
    target = random_labels((1, 40, 70), 4, 1, ignored=0).to(device)
    target[0, 39, 69] = 9
    if device == "cpu":
        with pytest.raises(InputError, match="^target: found label 9, expected 0 to 3"):
            ops.confusion_matrix(logits, target, 4)
    else:
        assert int(ops.confusion_matrix(logits, target, 4).sum()) == 40 * 70 - 1
