"""Output-space adversary: a discriminator a head tells source predictions from target ones (AdaptSegNet)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models import Discriminator, Logits, MultiScaleDiscriminator, ensemble, heads

SOURCE, TARGET = 0.0, 1.0  # what the discriminators are to answer

Space = Literal["probability", "entropy"]
Gan = Literal["bce", "lsgan"]


def probabilities(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """softmax of the upsampled logits, float32 ``[N, C, H, W]``: the space of AdaptSegNet's discriminators."""
    upsampled = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    return upsampled.softmax(1, dtype=torch.float32)


def self_information(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """−p·log2(p + 1e-30) / log2(C), float32 ``[N, C, H, W]``: the space of AdvEnt's (Vu et al. 2019, eq. 5)."""
    p = probabilities(logits, size, align_corners)
    return -p * torch.log2(p + 1e-30) / math.log2(logits.shape[1])


_SPACES = {"probability": probabilities, "entropy": self_information}


def _bce(answer: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


def _least_squares(answer: Tensor, domain: float) -> Tensor:
    return (answer.float() - domain).square().mean()


_DISTANCES = {"bce": _bce, "lsgan": _least_squares}


class OutputAdversary(nn.Module):
    """Primary and auxiliary discriminators with their two losses (facts: L_adv, UDAS section 3.3).

    Args:
        num_classes: channels of the probabilities.
        width: channels of the discriminators' first layer; 64 is AdaptSegNet's, 32 MRNet's.
        weights: weight of the generator's loss for (primary, auxiliary); a level of weight 0 has no
            discriminator.
        real: what stands for the source: each head's own prediction, or on both levels MRNet's ensemble
            softmax(0.5·auxiliary + primary).
        space: what the discriminators look at: probabilities, or their weighted self-information (AdvEnt).
        gan: binary cross-entropy, or least squares (LSGAN, Mao et al. 2017).
        scales: 1 for AdaptSegNet's discriminator; more for MRNet's, whose losses add up over the scales.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        weights: tuple[float, float] = (0.001, 0.0002),
        real: Literal["primary", "ensemble"] = "primary",
        space: Space = "probability",
        gan: Gan = "bce",
        scales: int = 1,
    ) -> None:
        super().__init__()

        def discriminator(weight: float) -> nn.Module | None:
            if not weight:
                return None
            if scales == 1:
                return Discriminator(num_classes, width)
            return MultiScaleDiscriminator(num_classes, width, scales)

        self.primary, self.auxiliary = (discriminator(weight) for weight in weights)
        self.weights = weights
        self.real = real
        self._space = _SPACES[space]
        self._distance = _DISTANCES[gan]

    def fool(self, target: object, size: tuple[int, int]) -> Tensor:
        """Generator's loss on the target's predictions: non-saturating, labelled as source.

        Gradients reach the segmentation network and never the discriminators' parameters.
        """
        self.requires_grad_(False)
        losses = [
            weight * self._loss(discriminator, seen, SOURCE)
            for weight, discriminator, seen in self._levels(heads(target), size)
        ]
        return torch.stack(losses).sum()

    def discriminate(
        self, source: object, source_size: tuple[int, int], target: object, target_size: tuple[int, int]
    ) -> Tensor:
        """Discriminators' loss: source = 0 and target = 1, mean over both, sum over the levels.

        The predictions are detached: no gradient reaches the segmentation network.
        """
        self.requires_grad_(True)
        source, target = _detached(source), _detached(target)
        if self.real == "ensemble" and source.auxiliary is not None:
            mixed = ensemble(source)
            source = source._replace(primary=mixed, auxiliary=mixed)
        levels = zip(self._levels(source, source_size), self._levels(target, target_size), strict=True)
        losses = [
            0.5 * self._loss(discriminator, s, SOURCE) + 0.5 * self._loss(discriminator, t, TARGET)
            for (_, discriminator, s), (*_, t) in levels
        ]
        return torch.stack(losses).sum()

    def _levels(self, both: Logits, size: tuple[int, int]) -> Iterator[tuple[float, nn.Module, Tensor]]:
        """(weight, discriminator, what it sees) of the heads that have all of them."""
        for weight, discriminator, logits in zip(
            self.weights, (self.primary, self.auxiliary), both, strict=True
        ):
            if discriminator is not None and logits is not None:
                yield weight, discriminator, self._space(logits, size, both.align_corners)

    def _loss(self, discriminator: nn.Module, seen: Tensor, domain: float) -> Tensor:
        answers = discriminator(seen)
        scales = [answers] if isinstance(answers, Tensor) else answers
        return torch.stack([self._distance(answer, domain) for answer in scales]).sum()


def _detached(output: object) -> Logits:
    logits = heads(output)
    return logits._replace(**{name: x.detach() for name, x in logits._asdict().items() if x is not None})
