"""Adversary: one discriminator a head separates source from target predictions (AdaptSegNet), or features (ADDA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udas_fast import distributed, ops
from udas_fast.config import Channels, Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.errors import bad
from udas_fast.models import (
    CHECKPOINTING,
    Backbone,
    Discriminator,
    MultiScaleDiscriminator,
    PixelDiscriminator,
    SegmentationOutput,
    has_dropout,
    shortest_side,
)
from udas_fast.models.backbones import Maps

SOURCE, TARGET = 0.0, 1.0  # labels of the discriminators

Judge = Callable[[Tensor], list[Tensor]]
"""A discriminator's answers, one map for each of its scales, to logits ``[N, C, h, w]`` of a batch or a part of it."""


@config_dataclass
class AdversaryConfig:
    """Discriminators on the predictions of both heads; the defaults are AdaptSegNet's."""

    weights: tuple[Weight, Weight] = (
        0.001,
        0.0002,
    )  # λ_adv of (primary, auxiliary); 0: no discriminator there
    # "primary": each head's own prediction stands for the source; "ensemble": softmax(0.5·auxiliary + primary) (MRNet).
    real: Literal["primary", "ensemble"] = "primary"
    # What the discriminators see: probabilities, weighted self-information (AdvEnt), scores (CyCADA), or the features
    # that the heads see (ADDA, and CyCADA's feature level): the backbone's fourth map, and its third of the other head.
    space: Literal["probability", "entropy", "score", "feature"] = "probability"
    gan: Literal["bce", "lsgan"] = "bce"  # cross-entropy, or least squares (Mao et al. 2017; MRNet)
    discriminator: Literal["patch", "pixel"] = "patch"  # "pixel": CyCADA's, of 1x1 convolutions
    scales: Annotated[int, Field(ge=1, le=8)] = 1  # 3: MRNet, whose losses add up over the scales
    width: Channels = 64  # channels of the first layer; 32: MRNet
    stride: Annotated[int, Field(ge=1, le=64)] = (
        1  # predictions are seen at 1/stride of the image's size; 1 is published
    )
    # The generator's loss counts while the discriminators' accuracy is above this; CyCADA: 0.6.
    gate: Annotated[float, Field(gt=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        if not any(self.weights):
            raise bad("weights", list(self.weights), "one above 0, or adversary: null")
        if self.discriminator == "pixel" and self.scales != 1:
            raise bad("scales", self.scales, '1 with discriminator "pixel"')
        if self.space == "feature":
            for name, value, expected in (
                ("discriminator", self.discriminator, "pixel"),
                ("real", self.real, "primary"),
                ("stride", self.stride, 1),
            ):
                if value != expected:
                    raise bad(name, value, f'{expected} with space "feature"')

    @property
    def min_size(self) -> int:
        """Shortest side of the images, in pixels, that the discriminators can take."""
        return 1 if self.discriminator == "pixel" else (shortest_side(self.scales) - 1) * self.stride + 1

    def build_discriminator(self, channels: int) -> nn.Module:
        """Return a discriminator of so many input channels."""
        if self.discriminator == "pixel":
            return PixelDiscriminator(channels, self.width)
        if self.scales == 1:
            return Discriminator(channels, self.width)
        return MultiScaleDiscriminator(channels, self.width, self.scales)


# Activation of ops.upsample by space.
_ACTIVATIONS = {"probability": "softmax", "entropy": "self_information", "score": "none"}


def _bce(answer: Tensor, domain: float) -> Tensor:
    answer = answer.float()
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


def least_squares(answer: Tensor, target: float) -> Tensor:
    """Return LSGAN's (answer − target)², mean over the answers, in float32 (Mao et al. 2017)."""
    return (answer.float() - target).square().mean()


_DISTANCES = {"bce": _bce, "lsgan": least_squares}
_MIDDLES = {"bce": 0.0, "lsgan": 0.5}  # an answer above says target


class AccuracyGate(nn.Module):
    """Gate that is 1 while the discriminators' mean accuracy over the last 100 steps is above ``threshold``, else 0.

    A discriminator that cannot separate the domains has nothing to teach (CyCADA's code: 60 %). The gate is closed at
    first. Nothing waits for the device, and the accuracies are saved with every checkpoint.
    """

    accuracies: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.register_buffer("accuracies", torch.full((100,), torch.nan))  # NaN: no such step yet

    def forward(self) -> Tensor:
        """Return 1 or 0, a float32 scalar on the device."""
        return (self.accuracies.nanmean() > self.threshold).float()

    @torch.no_grad()
    def record(self, right: Sequence[Tensor]) -> None:
        """Add a step's answers: bool maps of any shape, True where the answer was right."""
        accuracy = distributed.all_reduce_mean(
            torch.cat([answers.flatten() for answers in right]).float().mean()
        )
        self.accuracies.copy_(torch.cat([self.accuracies[1:], accuracy[None]]))


class OutputAdversary(nn.Module):
    """Primary and auxiliary discriminators with their two losses (L_adv, UDAS section 3.3).

    Args:
        channels: channels of what the primary and the auxiliary discriminator see.
        config: discriminators, what they see, and weights; a level of weight 0 has no discriminator.
    """

    def __init__(self, channels: tuple[int, int], config: AdversaryConfig) -> None:
        super().__init__()
        primary, auxiliary = config.weights
        self.primary = config.build_discriminator(channels[0]) if primary else None
        self.auxiliary = config.build_discriminator(channels[1]) if auxiliary else None
        self.config = config
        self._distance, self._middle = _DISTANCES[config.gan], _MIDDLES[config.gan]
        self.gate = None if config.gate is None else AccuracyGate(config.gate)
        self.checkpointed = CHECKPOINTING["none"]
        self.micro_batch_size: int | None = None

    def generator_loss(self, target: SegmentationOutput, images: Batch) -> Tensor:
        """Return the generator's loss on the predictions of target ``images``: non-saturating, labelled as source.

        Gradients reach the segmentation network and never the discriminators' parameters.
        """
        self.requires_grad_(False)
        losses = [
            weight * self._loss(self._answers(judge, parts), SOURCE)
            for weight, judge, parts in self._levels(target, images)
        ]
        loss = torch.stack(losses).sum()
        return loss if self.gate is None else self.gate() * loss

    def discriminator_loss(
        self,
        source: SegmentationOutput,
        source_images: Batch,
        target: SegmentationOutput,
        target_images: Batch,
    ) -> Tensor:
        """Return the discriminators' loss: source = 0 and target = 1, mean over both, sum over the levels.

        The predictions are detached: no gradient reaches the segmentation network.
        """
        self.requires_grad_(True)
        source, target = source.detach(), target.detach()
        if self.config.real == "ensemble" and source.auxiliary is not None:
            mixed = source.ensemble()
            source = SegmentationOutput(mixed, mixed, source.align_corners)
        levels = zip(self._levels(source, source_images), self._levels(target, target_images), strict=True)
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
        self, output: SegmentationOutput, images: Batch
    ) -> Iterator[tuple[float, Judge, Sequence[Tensor]]]:
        """Yield (weight, discriminator, parts of the logits that it judges) of the heads that have all of them."""
        stride = self.config.stride
        height, width = images.image.shape[-2:]
        see: Callable[[Tensor], Tensor] = Tensor.float  # features, as they are
        if self.config.space != "feature":
            see = partial(
                ops.upsample,
                size=(-(-height // stride), -(-width // stride)),
                activation=_ACTIVATIONS[self.config.space],
                align_corners=output.align_corners,
            )
        for weight, discriminator, logits in zip(
            self.config.weights,
            (self.primary, self.auxiliary),
            (output.primary, output.auxiliary),
            strict=True,
        ):
            if discriminator is not None and logits is not None:
                judge = partial(_judge, discriminator, see)
                yield weight, judge, logits.split(self.micro_batch_size or len(logits))

    def _answers(self, judge: Judge, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return one map for each of the discriminator's scales."""
        if "discriminators" in self.checkpointed or len(parts) > 1:
            # Keeps the low-resolution logits and the answers. The logits, an argument, show torch whose generator it
            # has to restore for dropout.
            judge = partial(checkpoint, judge, use_reentrant=False, preserve_rng_state=has_dropout(self))
        answers = [judge(part) for part in parts]
        return answers[0] if len(parts) == 1 else [torch.cat(scale) for scale in zip(*answers, strict=True)]

    def _loss(self, answers: list[Tensor], domain: float) -> Tensor:
        return torch.stack([self._distance(answer, domain) for answer in answers]).sum()


@contextmanager
def seeing_features(model: nn.Module) -> Iterator[list[Maps]]:
    """Collect the maps of the backbone in each forward of ``model`` inside.

    Raises:
        InputError: the network has no backbone of udas_fast.
    """
    maps: list[Maps] = []
    hook = backbone_of(model).register_forward_hook(lambda _, inputs, output: maps.append(output))
    try:
        yield maps
    finally:
        hook.remove()


def features(maps: Sequence[Maps]) -> SegmentationOutput:
    """Return the fourth and the third map of the parts of a batch in the place of primary and auxiliary logits."""
    return SegmentationOutput(torch.cat([x[3] for x in maps]), torch.cat([x[2] for x in maps]))


def backbone_of(model: nn.Module) -> Backbone:
    """Return the backbone of ``model``; raise InputError where it has none of udas_fast."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise bad(
            'adversary.space "feature"',
            f"{type(model).__name__} without a backbone of udas_fast",
            "another space",
        )
    return backbone


def _judge(discriminator: nn.Module, see: Callable[[Tensor], Tensor], logits: Tensor) -> list[Tensor]:
    answers = discriminator(see(logits))
    return [answers] if isinstance(answers, Tensor) else answers
