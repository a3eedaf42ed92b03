"""Domain CutMix: labels follow pixels, and what is pasted into what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from udas_fast.data import Batch
from udas_fast.data.style import match_fda, match_lab
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.mixing import (
    MixingConfig,
    Translate,
    domain_cutmix,
    labelled_batches,
    translated_source,
)

PLAIN = MixingConfig(augment="none")


def _labelled(
    batches: Batches, mixing: MixingConfig | None, ctx: PrepareContext, translate: Translate = "none"
) -> dict[str, Batch]:
    """The labelled batches of a step, of the source in the target's style."""
    source = translated_source(batches, translate, 0.1)
    return labelled_batches(source, batches.get("labelled"), mixing, ctx)


def _pixels(images: Tensor) -> Tensor:
    """The values from 0 to 255 of the input of a network that takes images in [0, 1]."""
    return (255 * images).round().to(torch.uint8)


def _coded(value: int, n: int = 8) -> Batch:
    """Images whose every pixel holds its label's value."""
    label = torch.full((n, 20, 30), value, dtype=torch.uint8)
    return Batch(label[:, None].expand(-1, 3, -1, -1).contiguous(), label, [str(value)] * n)


@pytest.mark.parametrize("paste", ["source", "target"])
def test_labels_follow_pixels_and_the_box_holds_the_pasted_domain(
    paste: str, make_step: Callable[..., PrepareContext]
) -> None:
    config = replace(PLAIN, paste=paste, fit=True)
    mixed = domain_cutmix(_coded(3), _coded(255), config, make_step())
    for channel in range(3):
        assert torch.equal(_pixels(mixed.image)[:, channel], mixed.label)
    assert mixed.label.unique().tolist() == [3, 255]
    for label in mixed.label:
        inside = label == (3 if paste == "source" else 255)
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        if len(rows):  # a rectangle: as many pixels as its bounding box
            assert inside.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


def test_mixed_batch_replaces_the_source_or_joins_it(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    step, joined = make_step(), replace(PLAIN, replace=False)
    assert list(_labelled(batches, PLAIN, step)) == ["seg_mixed"]  # "instead of the source image" (UDAS 3.4)
    both = _labelled(batches, joined, step)
    assert list(both) == ["seg", "seg_mixed"]
    assert torch.equal(both["seg"].image, batches.source.image)
    unmixed = Batches(source=batches.source, unlabelled=batches.unlabelled)
    for config in (PLAIN, joined, MixingConfig()):  # without labels it is the adaptation of 3.3
        alone = _labelled(unmixed, config, step)
        assert list(alone) == ["seg"]
        assert torch.equal(alone["seg"].image, batches.source.image)
    augmented = _labelled(unmixed, replace(joined, augment="photometric", augmented_source=True), step)
    assert list(augmented) == ["seg", "seg_augmented"]
    assert torch.equal(augmented["seg"].image, batches.source.image)
    assert torch.equal(augmented["seg_augmented"].label, batches.source.label)
    assert not torch.equal(augmented["seg_augmented"].image, batches.source.image)


def test_the_box_holds_a_third_of_the_image_and_the_target(make_step: Callable[..., PrepareContext]) -> None:
    """UDAS 3.4: target pixels in a box of the source, clipped as CutMix clips it; 0.32 of the image on average."""
    label = domain_cutmix(_coded(0, 4000), _coded(1, 4000), PLAIN, make_step()).label
    assert label.float().mean() == pytest.approx(0.32, abs=0.015)


def test_whole_autoaugment_turns_label_and_image_together(make_step: Callable[..., PrepareContext]) -> None:
    """Images that are their labels, of two classes: what AutoAugment moves, it moves in both."""
    mixed = domain_cutmix(_coded(60, 64), _coded(200, 64), MixingConfig(), make_step())
    plain = domain_cutmix(_coded(60, 64), _coded(200, 64), PLAIN, make_step())
    turned = (mixed.label != plain.label).flatten(1).any(1)
    assert 0.05 < turned.float().mean() < 0.4  # 4.2 of 25 draws turn an image
    assert (mixed.label[turned] == 255).any()  # what comes from outside
    assert set(mixed.label.unique().tolist()) == {60, 200, 255}


def test_without_mixing_labelled_target_images_are_left_out(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    made = _labelled(batches, None, make_step())
    assert list(made) == ["seg"]
    assert made["seg"].image is batches.source.image
    assert AdaptationConfig().requirements.optional_streams == ()
    assert AdaptationConfig(mixing=MixingConfig()).requirements.optional_streams == ("labelled",)


def test_augmentation_and_translation_leave_labels_alone(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    plain = _labelled(batches, PLAIN, make_step(seed=5))
    full = _labelled(batches, MixingConfig(augment="photometric"), make_step(seed=5), "lab")
    for name in plain:
        assert torch.equal(plain[name].label, full[name].label)
        assert full[name].image.dtype == torch.uint8
        assert not torch.equal(_pixels(plain[name].image), full[name].image)


def test_what_is_mixed_or_augmented_is_the_translated_source(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    lab = match_lab(batches.source.image, batches.unlabelled.image)
    mixed = _pixels(_labelled(batches, PLAIN, make_step(), "lab")["seg_mixed"].image)
    here, there = ((mixed == image).all(1) for image in (lab, batches.labelled.image))
    assert (here | there).all()
    assert 0 < here.float().mean() < 1
    unmixed = Batches(source=batches.source, unlabelled=batches.unlabelled)
    config = MixingConfig(augment="photometric", augmented_source=True)
    augmented = _labelled(unmixed, config, make_step(seed=3), "lab")["seg_augmented"].image
    assert torch.equal(augmented, make_step(seed=3).augment(lab))


def test_boxes_have_the_area_that_alpha_says(make_step: Callable[..., PrepareContext]) -> None:
    # λ ~ Beta(1000, 1000) is 0.5 ± 0.011, and the box that is kept inside has area 1 − λ, up to its sides' rounding.
    config = replace(PLAIN, alpha=1000.0, fit=True)
    label = domain_cutmix(_coded(1), _coded(0), config, make_step()).label
    area = label.float().mean((1, 2))
    assert (area - 0.5).abs().max() < 0.1
    assert len(label.unique(dim=0)) > len(label) / 2  # each image has its own; two may meet


def test_fda_changes_the_source_images_and_no_label(
    batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    out = _labelled(batches, replace(PLAIN, replace=False), make_step(), "fda")
    source = batches.source
    assert torch.equal(out["seg"].image, match_fda(source.image, batches.unlabelled.image, 0.1))
    assert torch.equal(out["seg"].label, source.label)
    with pytest.raises(ValueError, match="fda_beta"):
        AdaptationConfig(fda_beta=0.5)
