"""Unpaired image translation: CycleGAN (Zhu et al. 2017), with CyCADA's semantic consistency as an option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.config import Channels, Weight, config_dataclass
from udas_fast.models import (
    PatchDiscriminator,
    normalization_of,
    normalize,
    normalize_signed,
    to_output,
    to_signed,
)
from udas_fast.objectives.adversary import least_squares
from udas_fast.objectives.base import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)
from udas_fast.objectives.losses import segmentation_loss

REAL, FAKE = 1.0, 0.0  # labels of the discriminators


@config_dataclass
class CycleGANConfig(ObjectiveConfig, kind="cyclegan"):
    """L = L_GAN + λ_cyc · L_cyc + λ_id · L_id + λ_sem · L_sem; the defaults are the published ones."""

    width: Channels = 64  # channels of the generators' first layer
    blocks: Annotated[int, Field(ge=1, le=100)] = (
        9  # residual blocks; 6 for images of 128 pixels (appendix 7.2)
    )
    discriminator_width: Channels = 64
    cycle: Weight = 10.0  # λ_cyc (section 4)
    identity: Weight = 5.0  # λ_id, half of λ_cyc (section 5.2)
    semantic: Weight = 1.0  # λ_sem (CyCADA, equation 6), where a segmentation network is given
    # Translated images of earlier steps that a discriminator sees again (section 4).
    pool: Annotated[int, Field(ge=0, le=10_000)] = 50

    @property
    def requirements(self) -> Requirements:
        """Images of both domains, and the two generators."""
        return Requirements(("source", "unlabelled"), paired=("source", "unlabelled"), model="translation")

    def build(self, num_classes: int) -> CycleGAN:
        """Return the objective, without a segmentation network."""
        return CycleGAN(self)


@dataclass
class CycleGANBatch:
    """Images uint8 ``[N, 3, H, W]`` of one step by domain, and the random numbers of each domain's image pool."""

    images: dict[str, Tensor]
    draws: dict[str, list[list[float]]]


class CycleGAN(Objective):
    """One step for :class:`udas_fast.models.CycleGenerators`, in both directions.

    ``segmenter``: a network trained on the source, frozen here; translation must not change its predictions.
    """

    def __init__(self, config: CycleGANConfig, segmenter: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.segmenter = None if segmenter is None else segmenter.eval().requires_grad_(False)
        domains = ("source", "target")
        self.discriminators = nn.ModuleDict(
            {d: PatchDiscriminator(config.discriminator_width) for d in domains}
        )
        self.pools = nn.ModuleDict({d: ImagePool(config.pool) for d in domains})

    def discriminator_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters of both discriminators."""
        return list(self.discriminators.parameters())

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> CycleGANBatch:
        """Draw the pools' random numbers."""
        images = {"source": batch.source.image, "target": batch.unlabelled.image}
        count = distributed.get_world_size() * len(images["source"])
        # These numbers are the host's, so no CUDA graph can stand for a step.
        draws = {domain: torch.rand(count, 2, generator=ctx.generator).tolist() for domain in images}
        return CycleGANBatch(images, draws)

    def training_step(self, model: nn.Module, batch: CycleGANBatch, ctx: StepContext) -> Losses:
        """Minimise L over the generators, then the discriminators' loss over the discriminators."""
        config, images = self.config, batch.images
        real = {domain: to_signed(image) for domain, image in images.items()}
        fake: dict[str, Tensor] = {}
        losses: Losses = {}

        # Generators: each direction goes backward on its own (memory), and no discriminator learns.
        self.discriminators.requires_grad_(False)
        for here, there in (("source", "target"), ("target", "source")):
            fake[there] = model(real[here], there)
            losses[f"gan_{there}"] = loss = least_squares(self.discriminators[there](fake[there]), REAL)
            losses[f"cycle_{here}"] = cycle = F.l1_loss(model(fake[there], here), real[here])
            loss = loss + config.cycle * cycle
            if config.identity:
                losses[f"identity_{there}"] = same = F.l1_loss(model(real[there], there), real[there])
                loss = loss + config.identity * same
            if self.segmenter is not None:
                losses[f"semantic_{there}"] = seen = self._semantic(self.segmenter, images[here], fake[there])
                loss = loss + config.semantic * seen
            ctx.backward(loss)

        # Discriminators: real images against this step's translated ones and older ones.
        self.discriminators.requires_grad_(True)
        for domain, discriminator in self.discriminators.items():
            old = self.pools[domain](fake[domain], batch.draws[domain])
            losses[f"dis_{domain}"] = loss = 0.5 * (
                least_squares(discriminator(real[domain]), REAL) + least_squares(discriminator(old), FAKE)
            )
            ctx.backward(loss)
        return {name: loss.detach() for name, loss in losses.items()}

    def _semantic(self, segmenter: nn.Module, original: Tensor, translated: Tensor) -> Tensor:
        """Return the CE of the segmentation of ``translated`` with the classes of ``original`` (CyCADA, equation 4).

        original: uint8; translated: in [-1, 1]; both [N, 3, H, W].
        """
        expected = normalization_of(segmenter)
        height, width = translated.shape[-2:]
        with torch.no_grad():
            seen = to_output(segmenter(normalize(original, expected)))
            label = ops.pseudo_label(
                [seen.primary], (height, width), threshold=0.0, align_corners=seen.align_corners
            ).label
        output = to_output(segmenter(normalize_signed(translated, expected)))
        return segmentation_loss(output, label, auxiliary_weight=0)


class ImagePool(nn.Module):
    """Translated images of earlier steps, so that a discriminator does not forget them (Shrivastava et al. 2017).

    Until ``size`` images are in the pool each new one goes in and is returned. Later each is returned as it is or,
    with probability 0.5, takes the place of a random older one that is returned instead. As in CycleGAN's code.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.images: list[Tensor] = []

    def forward(self, images: Tensor, draws: Sequence[Sequence[float]]) -> Tensor:
        """Return images ``[N, 3, H, W]``, detached; ``draws``: two numbers in [0, 1) for each image of all processes.

        The pool takes the images of all processes, and so is the same in each of them.
        """
        out = []
        for image, (coin, place) in zip(distributed.all_gather(images.detach()).unbind(), draws, strict=True):
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and coin < 0.5:
                index = int(place * self.size)
                image, self.images[index] = self.images[index].to(image.device), image.clone()
            out.append(image)
        first = distributed.get_rank() * len(images)
        return torch.stack(out[first : first + len(images)])

    def get_extra_state(self) -> dict[str, Any]:
        """Return the images for ``state_dict``: their number grows, which no buffer's can."""
        return {"images": list(self.images)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`get_extra_state`."""
        self.images = list(state["images"])
