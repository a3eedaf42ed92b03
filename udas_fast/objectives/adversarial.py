"""Output-space adversary: a discriminator a head tells source predictions from target ones (AdaptSegNet)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models import Discriminator, heads

SOURCE, TARGET = 0.0, 1.0  # what the discriminators are to answer


def probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """softmax of the upsampled logits, ``[N, C, H, W]``: the space that the discriminators look at."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)


def _bce(answer: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


class OutputAdversary(nn.Module):
    """Primary and auxiliary discriminators with their two losses (facts: L_adv, UDAS section 3.3).

    Args:
        num_classes: channels of the probabilities.
        width: channels of the discriminators' first layer; 64 is the published one.
        weights: weight of the generator's loss for (primary, auxiliary).
        real: what stands for the source on the primary level: its own prediction, or MRNet's ensemble
            softmax(0.5·auxiliary + primary).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        weights: tuple[float, float] = (0.001, 0.0002),
        real: Literal["primary", "ensemble"] = "primary",
    ) -> None:
        super().__init__()
        self.primary = Discriminator(num_classes, width)
        self.auxiliary = Discriminator(num_classes, width)
        self.weights = weights
        self.real = real

    def fool(self, target: object, size: tuple[int, int]) -> Tensor:
        """Generator's loss on the target's predictions: non-saturating, labelled as source.

        Gradients reach the segmentation network and never the discriminators' parameters.
        """
        self.requires_grad_(False)
        primary, auxiliary = heads(target)
        loss = self.weights[0] * _bce(self.primary(probabilities(primary, size)), SOURCE)
        if auxiliary is not None:
            loss = loss + self.weights[1] * _bce(self.auxiliary(probabilities(auxiliary, size)), SOURCE)
        return loss

    def discriminate(
        self, source: object, source_size: tuple[int, int], target: object, target_size: tuple[int, int]
    ) -> Tensor:
        """Discriminators' loss: BCE with source = 0 and target = 1, mean over both, sum over the levels.

        The predictions are detached: no gradient reaches the segmentation network.
        """
        self.requires_grad_(True)
        source_primary, source_auxiliary = _detached(source)
        target_primary, target_auxiliary = _detached(target)
        if self.real == "ensemble" and source_auxiliary is not None:
            source_primary = source_primary + 0.5 * source_auxiliary
        levels = [(self.primary, source_primary, target_primary)]
        if source_auxiliary is not None and target_auxiliary is not None:
            levels.append((self.auxiliary, source_auxiliary, target_auxiliary))
        losses = [
            0.5 * _bce(discriminator(probabilities(s, source_size)), SOURCE)
            + 0.5 * _bce(discriminator(probabilities(t, target_size)), TARGET)
            for discriminator, s, t in levels
        ]
        return torch.stack(losses).sum()


def _detached(output: object) -> tuple[Tensor, Tensor | None]:
    primary, auxiliary = heads(output)
    return primary.detach(), None if auxiliary is None else auxiliary.detach()
