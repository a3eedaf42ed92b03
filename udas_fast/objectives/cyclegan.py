"""Unpaired image translation: CycleGAN (Zhu et al. 2017), with CyCADA's semantic consistency as an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.data import Batch
from udas_fast.models import PatchDiscriminator, heads, normalize_signed, to_signed
from udas_fast.objectives.adversary import least_squares
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Step, Weight
from udas_fast.objectives.supervised import segmentation_loss

REAL, FAKE = 1.0, 0.0  # what the discriminators are to answer


@dataclass(frozen=True, config=STRICT)
class CycleGANConfig(ObjectiveConfig):
    """L = L_GAN + λ_cyc · L_cyc + λ_id · L_id + λ_sem · L_sem; the defaults are the published ones."""

    kind: Literal["cyclegan"] = "cyclegan"
    width: Annotated[int, Field(ge=1)] = 64  # channels of the generators' first layer
    blocks: Annotated[int, Field(ge=1)] = 9  # residual blocks; 6 for images of 128 pixels (appendix 7.2)
    discriminator_width: Annotated[int, Field(ge=1)] = 64
    cycle: Weight = 10.0  # λ_cyc (section 4)
    identity: Weight = 5.0  # λ_id, half of λ_cyc (section 5.2)
    semantic: Weight = 1.0  # λ_sem (CyCADA, equation 6), where a segmentation network is given
    # Translated images that a discriminator is shown again (section 4).
    pool: Annotated[int, Field(ge=0)] = 50

    trains = "translation"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("source", "unlabelled")

    @property
    def paired(self) -> tuple[str, ...]:
        return self.needs

    def build(self, num_classes: int) -> CycleGAN:
        return CycleGAN(self)


class CycleGAN(Objective):
    """One step for :class:`udas_fast.models.CycleGenerators`, in both directions.

    ``segmenter``: a network trained on the source, frozen here: translation is not to change what it sees.
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
        return list(self.discriminators.parameters())

    def inputs(self, batches: Mapping[str, Batch], step: Step) -> dict[str, Any]:
        images = {"source": batches["source"].image, "target": batches["unlabelled"].image}
        count = distributed.get_world_size() * len(images["source"])
        # Of each domain's pool; the numbers are the host's, and so no CUDA graph can stand for a step.
        draws = {domain: torch.rand(count, 2, generator=step.generator).tolist() for domain in images}
        return {"images": images, "draws": draws}

    def learn(self, model: nn.Module, inputs: Mapping[str, Any], step: Learning) -> dict[str, Tensor]:
        config, images = self.config, inputs["images"]
        real = {domain: to_signed(image) for domain, image in images.items()}
        fake: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}

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
                losses[f"semantic_{there}"] = seen = self._semantic(step.normalize(images[here]), fake[there])
                loss = loss + config.semantic * seen
            step.backward(loss)

        # Discriminators: real images against this step's translated ones and older ones.
        self.discriminators.requires_grad_(True)
        for domain, discriminator in self.discriminators.items():
            old = self.pools[domain](fake[domain], inputs["draws"][domain])
            losses[f"dis_{domain}"] = loss = 0.5 * (
                least_squares(discriminator(real[domain]), REAL) + least_squares(discriminator(old), FAKE)
            )
            step.backward(loss)
        return {name: loss.detach() for name, loss in losses.items()}

    def _semantic(self, original: Tensor, translated: Tensor) -> Tensor:
        """CE of the segmentation of ``translated`` with the classes found in ``original`` (CyCADA, equation 4)."""
        size = translated.shape[-2:]
        with torch.no_grad():
            seen = heads(self.segmenter(original))
            label = ops.pseudo_label(
                [seen.primary], size, threshold=0.0, align_corners=seen.align_corners
            ).label
        return segmentation_loss(self.segmenter(normalize_signed(translated)), label, auxiliary_weight=0)


class ImagePool(nn.Module):
    """Translated images of earlier steps, so that a discriminator does not forget them (Shrivastava et al. 2017).

    Until ``size`` images are in the pool each new one goes in and is returned. Later each is returned as it is or,
    with probability 0.5, takes the place of a random older one that is returned instead. As in CycleGAN's code.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.images: list[Tensor] = []

    def forward(self, images: Tensor, draws: Sequence[tuple[float, float]]) -> Tensor:
        """``[N, 3, H, W]``, detached; ``draws`` are two random numbers of [0, 1) for each image of all processes.

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
        """The images, for ``state_dict``: they are as many as there are yet, which no buffer can be."""
        return {"images": list(self.images)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """What :meth:`get_extra_state` returned."""
        self.images = list(state["images"])
