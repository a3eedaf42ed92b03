"""Classes, boxes and patches of the student's view: what is drawn, how often, and from which image."""

from __future__ import annotations

import math

import pytest
import torch

from udas_fast import distributed, ops
from udas_fast.errors import InputError
from udas_fast.objectives.student_view import (
    CutMixConfig,
    MaskConfig,
    draw_boxes,
    draw_visible,
    of_the_next,
    patches_to_pixels,
    sample_classes,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_classes_are_a_share_of_the_images_own_and_never_ignored_pixels(share: float) -> None:
    own = [[0], [1, 4], [0, 2, 6], [1, 2, 3, 4, 5], []]
    label = torch.full((5, 6, 8), 255, dtype=torch.uint8)
    for i, classes in enumerate(own):
        for place, c in enumerate(classes):
            label[i, place] = c
    for seed in range(20):
        table = sample_classes(label, torch.rand(5, 7, generator=_generator(seed)), share)
        for row, classes in zip(table, own, strict=True):
            chosen = row.nonzero().flatten().tolist()
            assert set(chosen) <= set(classes)
            assert len(chosen) == math.ceil(share * len(classes))
        image = torch.zeros(5, 3, 6, 8, dtype=torch.uint8)
        _, mixed = ops.region_mix(image, image, label, torch.full_like(label, 6), table)
        assert not (mixed == 255).any()  # an ignored pixel stays the target's


def test_every_class_of_an_image_is_as_likely() -> None:
    label = torch.tensor([0, 2, 3, 6] * 6, dtype=torch.uint8).view(1, 4, 6).expand(8000, -1, -1)
    table = sample_classes(label, torch.rand(8000, 7, generator=_generator()))
    part = table.float().mean(0)
    assert part[[1, 4, 5]].sum() == 0
    torch.testing.assert_close(part[[0, 2, 3, 6]], torch.full((4,), 0.5), rtol=0, atol=0.03)


@pytest.mark.parametrize("size", [(40, 60), (301, 77)])
def test_boxes_fit_and_have_the_area_and_aspect_of_their_ranges(size: tuple[int, int]) -> None:
    config = CutMixConfig(probability=0.5, area=(0.1, 0.3), aspect=(0.8, 1.25))
    boxes = draw_boxes(4000, size, config, _generator())
    assert boxes.dtype == torch.int32
    width, height = (boxes[:, 2] - boxes[:, 0]).float(), (boxes[:, 3] - boxes[:, 1]).float()
    drawn = width > 0
    assert drawn.float().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(drawn, height > 0)
    assert not boxes[~drawn].any()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= size[1]).all()
    assert (boxes[:, 3] <= size[0]).all()
    if size == (40, 60):  # no side is limited by the image
        area, aspect = (width * height / (size[0] * size[1]))[drawn], (height / width)[drawn]
        assert 0.085 < area.min() < 0.11  # sides are rounded down
        assert 0.28 < area.max() <= 0.3
        assert 0.75 < aspect.min() < 0.85
        assert 1.2 < aspect.max() < 1.35
        assert (boxes[:, 0].max(), boxes[:, 2].max()) > (30, 59)


@pytest.mark.parametrize(
    ("size", "patches"),
    [((512, 512), (16, 16)), ((1024, 1024), (16, 16)), ((512, 1024), (16, 32)), ((180, 240), (16, 21))],
)
def test_patches_scale_with_the_image(size: tuple[int, int], patches: tuple[int, int]) -> None:
    visible = draw_visible(2, size, MaskConfig(), _generator())
    assert visible.shape == (2, 1, *patches)
    pixels = patches_to_pixels(visible, size)
    rows = (torch.arange(size[0]) * patches[0] / size[0]).long()
    columns = (torch.arange(size[1]) * patches[1] / size[1]).long()
    assert torch.equal(pixels.bool(), visible[:, :, rows][..., columns])


def test_the_ratio_is_what_is_hidden() -> None:
    visible = draw_visible(200, (64, 64), MaskConfig(ratio=0.7), _generator())
    assert visible.float().mean() == pytest.approx(0.3, abs=0.01)
    assert draw_visible(5, (3, 200), MaskConfig(ratio=0.0), _generator()).all()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_no_image_is_its_own_next_one(n: int) -> None:
    rows = torch.arange(n)
    assert not (of_the_next(rows) == rows).any()
    assert of_the_next(rows).sort().values.tolist() == rows.tolist()


def test_the_next_image_may_be_another_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.arange(12).view(4, 3)
    monkeypatch.setattr(distributed, "all_gather", lambda _: batch)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        own = batch[2 * rank : 2 * rank + 2]
        assert torch.equal(of_the_next(own), batch.roll(-1, 0)[2 * rank : 2 * rank + 2])


def test_wrong_ranges_are_refused() -> None:
    with pytest.raises(InputError, match=r"area: found \(0.5, 0.1\), expected \(lowest, highest\)"):
        CutMixConfig(area=(0.5, 0.1))
    with pytest.raises(InputError, match="ratio"):
        MaskConfig(ratio=1.0)
