"""Parts that the semi-supervised methods share: labelled images of a choice of domains, and weights that rise."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.objectives.base import Domain, Losses, Objective, PrepareContext, Requirements, StepContext
from udas_fast.objectives.losses import segmentation_loss

#: Labelled images that a method learns from: the target's alone (semi-supervised learning), the source's alone
#: (unsupervised adaptation), or the source's and the target's where there are some (semi-supervised adaptation).
LabelledDomain: TypeAlias = Literal["source", "labelled", "both"]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


def requirements(domain: LabelledDomain, *, mixed: bool = False, fresh_start: bool = False) -> Requirements:
    """Return the requirements of a method on unlabelled target images and the labelled images of ``domain``.

    ``mixed``: whether images of all streams are mixed, which therefore have one size; ``fresh_start``: whether the
    network begins with its initial weights.
    """
    first: tuple[Literal["source", "labelled"]] = ("labelled",) if domain == "labelled" else ("source",)
    both = domain == "both"
    return Requirements(
        streams=(*first, "unlabelled"),
        optional_streams=("labelled",) if both else (),
        equal_sizes=(*first, *(("labelled",) if both else ()), "unlabelled") if mixed else (),
        fresh_start=fresh_start,
        source_sized=(),
    )


def domain_of(name: str, domain: LabelledDomain) -> Domain:
    """Return the domain of the labelled images whose loss has this ``name``."""
    return "source" if name == "seg" and domain != "labelled" else "target"


def learn_labelled(
    objective: Objective,
    model: nn.Module,
    labelled: dict[str, Batch],
    domain: LabelledDomain,
    auxiliary_weight: float,
    ctx: StepContext,
) -> Losses:
    """Minimise L_seg on each of the ``labelled`` images; return the losses by name."""
    losses = {}
    for name, images in labelled.items():
        output = ctx.forward(model, images.image, domain=domain_of(name, domain))
        losses[name] = segmentation_loss(
            output, images.required_label, auxiliary_weight, class_weights=objective.class_weights
        )
        ctx.backward(losses[name])
    return losses


def ramp(weight: float, share: float, ctx: PrepareContext, device: torch.device) -> Tensor:
    """Return ``weight`` · min(1, progress / ``share``), a float32 scalar on ``device``: λ(t) that rises linearly."""
    risen = min(1.0, ctx.progress / share) if share else 1.0
    return torch.full((), weight * risen, device=device)
