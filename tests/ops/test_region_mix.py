"""region_mix and sample_boxes: the composite, its normalisation and layouts, and the boxes' distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICES, random_labels
from torch import Tensor

from udas_fast import ops
from udas_fast.errors import InputError
from udas_fast.ops import reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(n: int, size: tuple[int, int], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (n, *size, 3), generator=generator)
    image = image.to(torch.uint8) if dtype == torch.uint8 else (image / 255).to(dtype)
    if layout == "interleaved":
        return image.permute(0, 3, 1, 2)
    image = image.permute(0, 3, 1, 2).contiguous()
    return image if layout == "contiguous" else image.flip(0).flip(0)[:, :, :, :]


def regions(kind: str, n: int, size: tuple[int, int], classes: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "boxes":
        return ops.sample_boxes(n, size, generator=generator)[0].to(device)
    shape = (n, classes) if kind == "classes" else (n, *size)
    return (torch.rand(shape, generator=generator) < 0.5).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["boxes", "classes", "mask"])
@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(
    n=st.integers(0, 3),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    dtype=st.sampled_from([torch.uint8, torch.uint8, torch.float32, torch.float16, torch.bfloat16]),
    out_dtype=st.sampled_from([None, torch.float32, torch.float16, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "interleaved"]),
    label_dtype=st.sampled_from([torch.uint8, torch.int64]),
    normalise=st.booleans(),
    channels_last=st.booleans(),
)
def test_matches_the_reference(
    device: str,
    kind: str,
    n: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    layout: str,
    label_dtype: torch.dtype,
    normalise: bool,
    channels_last: bool,
) -> None:
    inside, outside = (images(n, size, dtype, layout, seed).to(device) for seed in (0, 1))
    labels = [random_labels((n, *size), 5, seed, dtype=label_dtype).to(device) for seed in (0, 1)]
    region = regions(kind, n, size, 5, device)
    options = {"out_dtype": out_dtype, "channels_last": channels_last}
    if normalise:
        options |= {"mean": MEAN, "std": STD}
    image, label = ops.region_mix(inside, outside, *labels, region, **options)
    expected, expected_label = reference.region_mix(inside, outside, *labels, region, **options)
    assert torch.equal(label, expected_label)
    assert image.dtype == expected.dtype
    layout_of = torch.channels_last if channels_last else torch.contiguous_format
    assert image.is_contiguous(memory_format=layout_of)
    if image.dtype == torch.uint8 or (image.dtype == dtype and not normalise):
        assert torch.equal(image, expected)
    else:
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[image.dtype]
        torch.testing.assert_close(image, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_255_is_kept_and_never_in_a_class_table(device: str) -> None:
    inside, outside = (images(1, (4, 6), torch.uint8, "contiguous", s).to(device) for s in (0, 1))
    label = torch.full((1, 4, 6), 255, dtype=torch.uint8, device=device)
    table = torch.ones((1, 19), dtype=torch.bool, device=device)
    image, mixed = ops.region_mix(inside, outside, label, torch.zeros_like(label), table)
    assert torch.equal(image, outside)
    assert bool((mixed == 0).all())
    everything = torch.tensor([[0, 0, 6, 4]], dtype=torch.int32, device=device)
    image, mixed = ops.region_mix(inside, outside, label, torch.zeros_like(label), everything)
    assert torch.equal(image, inside)
    assert bool((mixed == 255).all())


def test_a_label_outside_the_table_is_found() -> None:
    image = images(1, (4, 6), torch.uint8, "contiguous", 0)
    label = torch.full((1, 4, 6), 19, dtype=torch.uint8)
    table = torch.ones((1, 19), dtype=torch.bool)
    with pytest.raises(InputError, match="^inside_label: found label 19, expected 0 to 18"):
        ops.region_mix(image, image, label, label, table)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_boxes_lie_in_the_image_and_the_ratio_is_their_area(device: str, fit: bool, alpha: float) -> None:
    height, width = 37, 61
    generator = torch.Generator(device=device).manual_seed(0)
    boxes, ratio = ops.sample_boxes(
        4000, (height, width), alpha=alpha, fit=fit, generator=generator, device=device
    )
    assert boxes.dtype == torch.int32
    x0, y0, x1, y1 = boxes.unbind(1)
    assert bool(((x0 >= 0) & (x0 <= x1) & (x1 <= width) & (y0 >= 0) & (y0 <= y1) & (y1 <= height)).all())
    torch.testing.assert_close(ratio, ((x1 - x0) * (y1 - y0)).float() / (height * width))
    if fit:  # nothing is clipped: the share is 1 − λ less what rounding down takes, and its mean is near 1/2
        assert abs(float(ratio.mean()) - 0.5) < 0.05
    again = torch.Generator(device=device).manual_seed(0)
    same, _ = ops.sample_boxes(4000, (height, width), alpha=alpha, fit=fit, generator=again, device=device)
    assert torch.equal(boxes, same)


def test_clipped_boxes_are_centred_uniformly() -> None:
    """Each pixel is in a clipped box as often as its mirror image, the middle more often than the corner."""
    boxes, _ = ops.sample_boxes(3000, (16, 16), generator=torch.Generator().manual_seed(1))
    label = torch.zeros((3000, 16, 16), dtype=torch.uint8)
    share = reference.region_mask(boxes, label).double().mean(0)
    assert float((share - share.flip(0)).abs().max()) < 0.05
    assert float((share - share.flip(1)).abs().max()) < 0.05
    assert share[8, 8] > share[0, 0] + 0.1
