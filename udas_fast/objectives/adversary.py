"""Output-space adversary: a discriminator a head tells source predictions from target ones (AdaptSegNet)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udas_fast import distributed, ops
from udas_fast.models import (
    CHECKPOINTING,
    Discriminator,
    MultiScaleDiscriminator,
    PixelDiscriminator,
    SegmentationOutput,
    has_dropout,
    to_output,
)

SOURCE, TARGET = 0.0, 1.0  # what the discriminators are to answer

Judge = Callable[[Tensor], list[Tensor]]
"""A discriminator's answers, one map for each of its scales, to logits ``[N, C, h, w]`` of a batch or a part of it."""
Space = Literal["probability", "entropy", "score"]
Gan = Literal["bce", "lsgan"]


# What ops.upsample makes of the logits for a discriminator.
_ACTIVATIONS = {"probability": "softmax", "entropy": "self_information", "score": "none"}


def _bce(answer: Tensor, domain: float) -> Tensor:
    answer = answer.float()
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


def least_squares(answer: Tensor, expected: float) -> Tensor:
    """LSGAN's (answer − expected)², mean over the answers, in float32 (Mao et al. 2017)."""
    return (answer.float() - expected).square().mean()


_DISTANCES = {"bce": _bce, "lsgan": least_squares}
_MIDDLES = {"bce": 0.0, "lsgan": 0.5}  # an answer above says target


class AccuracyGate(nn.Module):
    """1 while the discriminators' mean accuracy over the last 100 steps is above ``threshold``, else 0.

    There is nothing to learn from a discriminator that cannot tell the domains apart (CyCADA's code: 60 %). Closed
    at first. Nothing waits for the device, and the accuracies are saved with every checkpoint.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.register_buffer("accuracies", torch.full((100,), torch.nan))  # NaN: no such step yet

    def forward(self) -> Tensor:
        """Float32 scalar on the device."""
        return (self.accuracies.nanmean() > self.threshold).float()

    @torch.no_grad()
    def record(self, right: Sequence[Tensor]) -> None:
        """Take in a step's answers, bool maps of any shape that say where they were right."""
        accuracy = distributed.all_reduce_mean(
            torch.cat([answers.flatten() for answers in right]).float().mean()
        )
        self.accuracies.copy_(torch.cat([self.accuracies[1:], accuracy[None]]))


class OutputAdversary(nn.Module):
    """Primary and auxiliary discriminators with their two losses (L_adv, UDAS section 3.3).

    Args:
        num_classes: channels of the probabilities.
        width: channels of the discriminators' first layer; 64 is AdaptSegNet's, 32 MRNet's.
        weights: weight of the generator's loss for (primary, auxiliary); a level of weight 0 has no
            discriminator.
        real: what stands for the source: each head's own prediction, or on both levels MRNet's ensemble
            softmax(0.5·auxiliary + primary).
        space: what the discriminators look at: probabilities, their weighted self-information (AdvEnt), or the
            scores themselves (CyCADA).
        gan: binary cross-entropy, or least squares (LSGAN, Mao et al. 2017).
        scales: 1 for AdaptSegNet's discriminator; more for MRNet's, whose losses add up over the scales.
        pixel: CyCADA's discriminator in their place.
        gate: the generator's loss counts while the discriminators' accuracy is above this (:class:`AccuracyGate`).
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
        pixel: bool = False,
        gate: float | None = None,
    ) -> None:
        super().__init__()

        def discriminator(weight: float) -> nn.Module | None:
            if not weight:
                return None
            if pixel:
                return PixelDiscriminator(num_classes, width)
            if scales == 1:
                return Discriminator(num_classes, width)
            return MultiScaleDiscriminator(num_classes, width, scales)

        self.primary, self.auxiliary = (discriminator(weight) for weight in weights)
        self.weights = weights
        self.real = real
        self._activation = _ACTIVATIONS[space]
        self._distance, self._middle = _DISTANCES[gan], _MIDDLES[gan]
        self.gate = None if gate is None else AccuracyGate(gate)
        self.checkpointed = CHECKPOINTING["none"]
        self.micro_batch_size: int | None = None

    def generator_loss(self, target: object, size: tuple[int, int]) -> Tensor:
        """Generator's loss on the target's predictions: non-saturating, labelled as source.

        Gradients reach the segmentation network and never the discriminators' parameters.
        """
        self.requires_grad_(False)
        losses = [
            weight * self._loss(self._answers(judge, parts), SOURCE)
            for weight, judge, parts in self._levels(to_output(target), size)
        ]
        loss = torch.stack(losses).sum()
        return loss if self.gate is None else self.gate() * loss

    def discriminator_loss(
        self, source: object, source_size: tuple[int, int], target: object, target_size: tuple[int, int]
    ) -> Tensor:
        """Discriminators' loss: source = 0 and target = 1, mean over both, sum over the levels.

        The predictions are detached: no gradient reaches the segmentation network.
        """
        self.requires_grad_(True)
        source, target = to_output(source).detach(), to_output(target).detach()
        if self.real == "ensemble" and source.auxiliary is not None:
            mixed = source.ensemble()
            source = replace(source, primary=mixed, auxiliary=mixed)
        levels = zip(self._levels(source, source_size), self._levels(target, target_size), strict=True)
        losses, right = [], []
        for (_, judge_s, s), (_, judge_t, t) in levels:
            s_answers, t_answers = self._answers(judge_s, s), self._answers(judge_t, t)
            losses.append(0.5 * self._loss(s_answers, SOURCE) + 0.5 * self._loss(t_answers, TARGET))
            right += [answer < self._middle for answer in s_answers]
            right += [answer > self._middle for answer in t_answers]
        if self.gate is not None:
            self.gate.record(right)
        return torch.stack(losses).sum()

    def _levels(
        self, both: SegmentationOutput, size: tuple[int, int]
    ) -> Iterator[tuple[float, Judge, Sequence[Tensor]]]:
        """(weight, discriminator's answers, the logits that it judges by parts) of the heads that have all of them."""
        for weight, discriminator, logits in zip(
            self.weights, (self.primary, self.auxiliary), both, strict=True
        ):
            if discriminator is not None and logits is not None:
                see = partial(
                    ops.upsample, size=size, activation=self._activation, align_corners=both.align_corners
                )
                yield (
                    weight,
                    partial(_judge, discriminator, see),
                    logits.split(self.micro_batch_size or len(logits)),
                )

    def _answers(self, judge: Judge, parts: Sequence[Tensor]) -> list[Tensor]:
        """One map for each of the discriminator's scales."""
        if "discriminators" in self.checkpointed or len(parts) > 1:
            # Keeps the low-resolution logits and the answers. torch sees by the logits, an argument, whose generator
            # it has to put back for dropout.
            judge = partial(checkpoint, judge, use_reentrant=False, preserve_rng_state=has_dropout(self))
        answers = [judge(part) for part in parts]
        return answers[0] if len(parts) == 1 else [torch.cat(scale) for scale in zip(*answers, strict=True)]

    def _loss(self, answers: list[Tensor], domain: float) -> Tensor:
        return torch.stack([self._distance(answer, domain) for answer in answers]).sum()


def _judge(discriminator: nn.Module, see: Callable[[Tensor], Tensor], logits: Tensor) -> list[Tensor]:
    answers = discriminator(see(logits))
    return [answers] if isinstance(answers, Tensor) else answers
