"""A step's labelled images: source in the target's look, and Domain CutMix (UDAS 3.2 and 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from pydantic.dataclasses import dataclass

from udas_fast import ops
from udas_fast.data import Batch
from udas_fast.objectives.base import STRICT, Step
from udas_fast.objectives.fda import match_fda
from udas_fast.objectives.lab import match_lab

Translate: TypeAlias = Literal["none", "lab", "fda"]
FdaBeta: TypeAlias = Annotated[float, Field(ge=0, lt=0.5)]


@dataclass(frozen=True, config=STRICT)
class MixingConfig:
    """How source images are translated and mixed with labelled target images."""

    translate: Translate = "lab"  # mean and std in LAB (DDM), or low frequencies (FDA)
    fda_beta: FdaBeta = 0.01  # half of FDA's window, as a share of the side
    # What is pasted into the other: DDM and UDAS's overview figure "source", UDAS's text "target"; "none" leaves
    # labelled target images out.
    paste: Literal["source", "target", "none"] = "source"
    fit: bool = False  # keep the whole box inside instead of clipping it
    alpha: Annotated[float, Field(gt=0)] = 1.0  # λ ~ Beta(alpha, alpha); the box has area 1 − λ (CutMix)
    replace: bool = False  # True: the mixed batch stands in place of the source batch; False: it joins it
    augment: bool = True  # photometric AutoAugment on the mixed image, or the source

    @property
    def paired(self) -> tuple[str, ...]:
        """Streams whose images are combined one by one."""
        partners = {"labelled": self.paste != "none", "unlabelled": self.translate != "none"}
        found = tuple(name for name, combined in partners.items() if combined)
        return ("source", *found) if found else ()


#: The source as it is and nothing else: what the methods before Domain CutMix train on.
NO_MIXING = MixingConfig(translate="none", paste="none", augment=False)


def domain_cutmix(source: Batch, target: Batch, config: MixingConfig, step: Step) -> Batch:
    """x̃ = M⊙x_s + (1−M)⊙x_t and ỹ = M⊙y_s + (1−M)⊙y_t for two labelled batches of one size.

    With ``paste="target"`` source and target change places. One box an image, from ``step.generator``.
    Labels stay dense and keep their 255: the paper's λ weighting of labels belongs to classification.
    """
    size, options = source.image.shape[-2:], {"alpha": config.alpha, "fit": config.fit}
    boxes = step.draw(
        lambda n: ops.sample_boxes(n, size, generator=step.generator, **options)[0], len(source.image)
    )
    boxes = boxes.to(source.image.device, non_blocking=True)  # drawn on the CPU, where the generator is
    inside, outside = (source, target) if config.paste == "source" else (target, source)
    image, label = ops.region_mix(inside.image, outside.image, inside.label, outside.label, boxes)
    if config.augment:
        image = step.augment(image)
    ids = [f"{s} + {t}" for s, t in zip(source.ids, target.ids, strict=True)]
    return Batch(image=image, label=label, ids=ids)


def translated_source(batches: Mapping[str, Batch], translate: Translate, fda_beta: float) -> Batch:
    """The batch ``source``, its images in the look of the ``unlabelled`` target images (UDAS 3.2)."""
    source = batches["source"]
    if translate == "lab":
        return replace(source, image=match_lab(source.image, batches["unlabelled"].image))
    if translate == "fda":
        return replace(source, image=match_fda(source.image, batches["unlabelled"].image, fda_beta))
    return source


def labelled_batches(batches: Mapping[str, Batch], config: MixingConfig, step: Step) -> dict[str, Batch]:
    """What L_seg is computed on: ``seg``, the translated source, and ``seg_mixed``, its Domain CutMix.

    Without labelled target images to mix, the augmented source takes the mixed batch's place as
    ``seg_augmented``: the teacher of self-training has to know augmented views, or the surest of K views is
    often a wrong one.
    """
    source = translated_source(batches, config.translate, config.fda_beta)
    if "labelled" not in batches or config.paste == "none":
        if not config.augment:
            return {"seg": source}
        name, second = "seg_augmented", replace(source, image=step.augment(source.image))
    else:
        name, second = "seg_mixed", domain_cutmix(source, batches["labelled"], config, step)
    return {name: second} if config.replace else {"seg": source, name: second}
