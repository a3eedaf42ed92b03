"""A step's labelled images: the source in the target's style, and Domain CutMix (UDAS 3.2 and 3.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from torch import Tensor

from udas_fast import ops
from udas_fast.config import config_dataclass
from udas_fast.data import Batch
from udas_fast.data.style import match_fda, match_lab
from udas_fast.objectives.base import Batches, PrepareContext, StreamName

Translate: TypeAlias = Literal["none", "lab", "fda"]
FdaBeta: TypeAlias = Annotated[float, Field(ge=0, lt=0.5)]


@config_dataclass
class MixingConfig:
    """Domain CutMix: a box of one domain in images of the other, with the labels of both (UDAS 3.4).

    The paper erases a box of the source and fills it with the target, then trains on the result "instead of the source
    image"; its overview figure and a word of 4.2.4 allow the other readings.
    """

    paste: Literal["source", "target"] = "target"  # the domain whose pixels fill the box
    fit: bool = False  # keep the whole box inside instead of clipping it
    alpha: Annotated[float, Field(gt=0)] = 1.0  # λ ~ Beta(alpha, alpha); the box has area 1 − λ (CutMix)
    replace: bool = True  # the mixed batch stands in place of the source batch; False: it joins it
    # AutoAugment of the mixed image: whole, where its label turns with it, or of colours alone.
    augment: Literal["none", "photometric", "full"] = "full"
    # Without labelled target images: the augmented source as a mixed batch. The paper then trains on the source alone.
    augmented_source: bool = False


def paired_streams(translate: Translate, mixing: MixingConfig | None) -> tuple[StreamName, ...]:
    """Return the streams whose images are combined one by one."""
    found: list[StreamName] = []
    if mixing is not None:
        found.append("labelled")
    if translate != "none":
        found.append("unlabelled")
    return ("source", *found) if found else ()


def domain_cutmix(source: Batch, target: Batch, config: MixingConfig, ctx: PrepareContext) -> Batch:
    """Return x̃ = M⊙x_s + (1−M)⊙x_t and ỹ = M⊙y_s + (1−M)⊙y_t for two labelled batches of one size.

    With ``paste="target"`` source and target change places. One box an image, from ``ctx.generator``.
    Labels stay dense and keep their 255: the paper's λ weighting of labels belongs to classification.
    Images are uint8 where AutoAugment follows, else the network's input.
    """
    size = image_size(source)

    def sample(n: int) -> Tensor:
        return ops.sample_boxes(n, size, alpha=config.alpha, fit=config.fit, generator=ctx.generator)[0]

    # Drawn on the CPU, where the generator is.
    boxes = ctx.draw(sample, len(source.image)).to(source.image.device, non_blocking=True)
    inside, outside = (source, target) if config.paste == "source" else (target, source)
    ids = [f"{s} + {t}" for s, t in zip(source.ids, target.ids, strict=True)]
    if config.augment == "none":
        return Batch(*ctx.mix(inside, outside, boxes), ids)
    image, label = ops.region_mix(
        inside.image, outside.image, inside.required_label, outside.required_label, boxes
    )
    return _augmented(Batch(image, label, ids), config, ctx)


def _augmented(images: Batch, config: MixingConfig, ctx: PrepareContext) -> Batch:
    """Return ``images`` under the AutoAugment that ``config`` asks for."""
    if config.augment == "full":
        image, label = ctx.augment_pairs(images.image, images.required_label)
        return replace(images, image=image, label=label)
    if config.augment == "photometric":
        return replace(images, image=ctx.augment(images.image))
    return images


def translated_source(batch: Batches, translate: Translate, fda_beta: float) -> Batch:
    """Return the source batch, its images in the style of the unlabelled target images (UDAS 3.2)."""
    source = batch.source
    if translate == "lab":
        return replace(source, image=match_lab(source.image, batch.unlabelled.image))
    if translate == "fda":
        return replace(source, image=match_fda(source.image, batch.unlabelled.image, fda_beta))
    return source


def labelled_batches(
    source: Batch, labelled: Batch | None, mixing: MixingConfig | None, ctx: PrepareContext
) -> dict[str, Batch]:
    """Return the batches of L_seg by the loss's name: ``seg``, the source, and ``seg_mixed``, its Domain CutMix.

    Without labelled target images there is the source, or with ``augmented_source`` that and its augmented copy
    ``seg_augmented``: a teacher that knows augmented views is less often wrong in the surest of K.
    """
    if mixing is None or (labelled is None and not mixing.augmented_source):
        return {"seg": source}
    if labelled is None:
        name, second = "seg_augmented", _augmented(source, mixing, ctx)
    else:
        name, second = "seg_mixed", domain_cutmix(source, labelled, mixing, ctx)
    return {name: second} if mixing.replace else {"seg": source, name: second}


def image_size(batch: Batch) -> tuple[int, int]:
    """Return (height, width) of the images of ``batch``."""
    height, width = batch.image.shape[-2:]
    return height, width
