"""Pseudo-labels: views come back to their place, the teacher's images, and balanced thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from udas_fast.data import Batch
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.mixing import image_size
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig, PseudoLabeller, balanced_thresholds


def _pointwise() -> nn.Module:
    """Equivariant under every movement of pixels."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 1)


def _smooth() -> Batch:
    y, x = torch.meshgrid(torch.arange(36.0), torch.arange(52.0), indexing="ij")
    waves = [torch.cos(x / 7 + y / 9), torch.cos(y / 6 - 1), torch.sin(x / 8 + 2)]
    image = ((torch.stack(waves) + 1) * 127).to(torch.uint8)[None]
    return Batch(torch.cat([image, image.flip(-2)]), None, ["a", "b"])


def _labeller(config: PseudoLabelConfig, teacher: nn.Module) -> PseudoLabeller:
    labeller = PseudoLabeller(config, 4)
    labeller.set_teacher(teacher)
    return labeller


def _labels(config: PseudoLabelConfig, ctx: PrepareContext) -> tuple[torch.Tensor, torch.Tensor]:
    labeller, batch = _labeller(config, _pointwise()), _smooth()
    views, flips = labeller.views(labeller.photometric_views(batch, ctx.augment), ctx.normalize)
    pseudo = labeller.label(views, flips, image_size(batch), 0.0)
    return pseudo.label, pseudo.confidence


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_geometric_views_come_back_to_their_place(
    make_step: Callable[..., PrepareContext], reduce: str
) -> None:
    plain = PseudoLabelConfig(views=("identity",), reduce=reduce)
    label, confidence = _labels(plain, make_step())
    mirrored = _labels(replace(plain, flip_view=True), make_step())
    assert torch.equal(label, mirrored[0])
    assert torch.equal(confidence, mirrored[1])
    scaled = _labels(replace(plain, flip_view=True, scales=(0.75, 1.5)), make_step())
    # Resampling waves of 1/6 a pixel: about (1/6)² / 8 for each of two interpolations, at logits of this size.
    assert (scaled[1] - confidence).abs().max() < 0.02
    assert (scaled[0] == label).float().mean() > 0.99


def test_views_are_counted(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    labeller = _labeller(
        PseudoLabelConfig(views=("identity", "strong"), flip_view=True, scales=(1.25,)), tiny_net
    )
    ctx = make_step()
    photometric = labeller.photometric_views(batches.unlabelled, ctx.augment)
    logits, flips = labeller.views(photometric, ctx.normalize)
    # Two photometric, then MRNet's three beside the identity.
    assert flips == [False, False, True, False, True]
    assert [tuple(view.primary.shape[-2:]) for view in logits] == [(8, 12)] * 3 + [(10, 15)] * 2
    with pytest.raises(ValueError, match="views: found 17 with scales and flips, expected at most 16"):
        PseudoLabelConfig(views=("strong",) * 12, flip_view=True, scales=(0.5, 2.0))


def test_the_teacher_sees_photometric_views(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    labeller = _labeller(PseudoLabelConfig(views=("identity", "strong")), tiny_net)
    ctx, target = make_step(), batches.unlabelled
    photometric = labeller.photometric_views(target, lambda image, kind: 255 - image)
    (plain, negative), _ = labeller.views(photometric, ctx.normalize)
    assert torch.equal(plain.primary, labeller.teacher(ctx.normalize(target.image))[0])
    assert torch.equal(negative.primary, labeller.teacher(ctx.normalize(255 - target.image))[0])


def test_views_are_of_the_kinds_asked_for_and_sharpened(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    config = PseudoLabelConfig(views=("weak", "identity", "strong"), temperature=0.5)
    labeller, image = _labeller(config, _pointwise()), batches.unlabelled.image
    again = make_step(seed=2)
    expected = [again.augment(image, "weak"), image, again.augment(image, "strong")]
    seen = labeller.photometric_views(batches.unlabelled, make_step(seed=2).augment)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    # A loader made those that are not the image itself.
    made = replace(batches.unlabelled, views=torch.stack([255 - image, image // 2], 1))
    seen = labeller.photometric_views(made, lambda *_: pytest.fail("made twice"))
    assert all(torch.equal(a, b) for a, b in zip(seen, (255 - image, image, image // 2), strict=True))
    # UDAS 2.2: softmax(logits / T).
    views, flips = labeller.views(seen, make_step().normalize)
    found = labeller.label(views, flips, image_size(batches.unlabelled), 0.0)
    p = torch.stack([(view.primary.double() / 0.5).softmax(1).amax(1) for view in views]).amax(0)
    torch.testing.assert_close(found.confidence.double(), p, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("portion", "cap"), [(0.5, 0.9), (0.2, 0.75), (1.0, 0.9)])
def test_balanced_thresholds_equal_sorting_all_confidences(portion: float, cap: float) -> None:
    rng = np.random.default_rng(0)
    histogram = torch.zeros(4, 2, 64, dtype=torch.int64)
    expected = []
    for c, power in enumerate((0.05, 1, 3)):
        values = np.sort(rng.random(777) ** power)[::-1]
        last_kept = values[int(np.ceil(portion * len(values))) - 1]
        expected.append(min(np.floor(64 * last_kept) / 64, cap))
        bins, kept = np.floor(64 * values).astype(int), rng.random(777) < 0.5
        for part in (0, 1):
            histogram[c, part] = torch.from_numpy(np.bincount(bins[kept == part], minlength=64))
    torch.testing.assert_close(
        balanced_thresholds(histogram.sum(1), portion, cap),
        torch.tensor([*expected, cap], dtype=torch.float32),
    )
