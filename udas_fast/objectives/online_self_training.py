"""Online self-training: a mean teacher labels target images, the student learns from mixed, strong and masked views.

DACS (Tranheden et al., WACV 2021, arXiv 2007.08702), DAFormer (Hoyer et al., CVPR 2022, arXiv 2111.14887), MIC (CVPR
2023, arXiv 2212.01322), VFM-UDA (Englert et al., CVPRW 2024, arXiv 2406.09896), FixMatch in the form of UniMatch's code
and UniMatch V2 (arXiv 2410.10777) are configurations of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.data.augment import ViewKind
from udas_fast.data.strong_view import StrongConfig, apply_strong, draw_strong
from udas_fast.errors import bad
from udas_fast.models import MeanTeacher, keep_statistics, require_backbone, require_tokens
from udas_fast.objectives.base import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
    StreamName,
)
from udas_fast.objectives.channel_dropout import ChannelDropoutConfig, draw_factors, scale_channels
from udas_fast.objectives.feature_distance import FeatureDistance, FeatureDistanceConfig
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.objectives.mixing import FdaBeta, Translate, image_size, translated_source
from udas_fast.objectives.pseudo_labels import MAX_VIEWS, balanced_thresholds, loader_views, photometric_views
from udas_fast.objectives.student_view import (
    ClassMixConfig,
    CutMixConfig,
    MaskConfig,
    draw_boxes,
    draw_visible,
    of_the_next,
    patches_to_pixels,
    sample_classes,
)

Share = Annotated[float, Field(ge=0, lt=1)]


@config_dataclass
class OnlineSelfTrainingConfig(ObjectiveConfig, kind="online_self_training"):
    """L = CE on labelled images + λ · CE on the student's view + λ_m · CE on the masked view.

    A pixel's cross-entropy counts by the teacher's confidence there: w = 1 where it reaches the threshold, or the share
    of such pixels everywhere. Pasted pixels have their own labels and w = 1. The means of these two terms are over all
    pixels, those of labelled images over the pixels that have a label.
    """

    small_lr: ClassVar[float] = 1.5e-3

    # Labelled images: the source's, the target's, or the source's and the target's where there are some.
    domain: Literal["source", "labelled", "both"] = "source"
    translate: Translate = "none"  # the source in the target's style, before anything else
    fda_beta: FdaBeta = 0.01
    augment_labelled: StrongConfig | None = None  # photometric changes of them
    decay: Share = 0.999  # α of the teacher; 0.99 in DACS, 0.996 in UniMatch V2
    # Photometric views for the teacher, by kind.
    views: Annotated[tuple[ViewKind, ...], Field(min_length=1, max_length=MAX_VIEWS)] = ("identity",)
    flip_view: bool = False  # a mirrored view of the first one as well
    reduce: Literal["max", "mean"] = "max"  # "mean": the mean probabilities of the views label (VFM-UDA)
    # Confidence from which the teacher is sure; "balanced": a threshold for each class.
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["balanced"] = 0.968
    portion: Annotated[float, Field(gt=0, le=1)] = (
        0.5  # "balanced": the share of each class's pixels that is sure
    )
    cap: Annotated[float, Field(gt=0, le=1)] = 0.9  # "balanced": no class needs more confidence than this
    # The weight of a pixel: the share of sure pixels of its image, that of the batch (DACS, DAFormer), or whether
    # the teacher is sure of the pixel itself (FixMatch).
    share: Literal["image", "batch", "pixel"] = "image"
    strong: StrongConfig = field(default_factory=StrongConfig)
    cut_mix: CutMixConfig | None = None
    class_mix: ClassMixConfig | None = None
    channel_dropout: ChannelDropoutConfig | None = None  # two student's views; their loss is the mean of both
    weight: Weight = 1.0  # λ
    masked: MaskConfig | None = None
    feature_distance: FeatureDistanceConfig | None = None  # of source images
    auxiliary_weight: Weight = 0.1
    result: Literal["student", "teacher"] = "student"  # the network that a round ends with

    def __post_init__(self) -> None:
        if self.translate != "none" and self.domain == "labelled":
            raise bad("translate", self.translate, '"none", or domain "source" or "both"')
        partner = None if self.class_mix is None else self.class_mix.partner
        if partner is not None and self.domain not in ("both", partner):
            raise bad("class_mix.partner", partner, f"{self.domain}, the labelled images of domain")
        if (count := len(self.views) + self.flip_view) > MAX_VIEWS:
            raise bad("views", f"{count} with the mirrored one", f"at most {MAX_VIEWS}")
        if self.feature_distance is not None and self.domain == "labelled":
            raise bad(
                "feature_distance", "domain labelled", "domain source or both, as it is of source images"
            )

    @property
    def requirements(self) -> Requirements:
        """Labelled and unlabelled images; crops of one size where classes are pasted."""
        partners: dict[str, tuple[StreamName, ...]] = {
            "source": ("source", "unlabelled"),
            "labelled": ("labelled", "unlabelled"),
            "both": ("source", "labelled", "unlabelled"),
        }
        mixed = () if self.class_mix is None else partners[self.class_mix.partner]
        translated: tuple[StreamName, ...] = () if self.translate == "none" else ("source", "unlabelled")
        distance = None if self.feature_distance is None else "feature_distance"
        dropout = None if self.channel_dropout is None else "channel_dropout"
        tokens = self.masked is not None and self.masked.patch == "token"
        return Requirements(
            streams=("labelled" if self.domain == "labelled" else "source", "unlabelled"),
            optional_streams=("labelled",) if self.domain == "both" else (),
            paired=tuple(dict.fromkeys((*mixed, *translated))),
            equal_sizes=mixed,
            several=() if self.cut_mix is None else ("unlabelled",),
            source_sized=(),
            backbone=distance or dropout,
            tokens="masked.patch token" if tokens else None,
            pretrained=distance,
            any_class=() if self.feature_distance is None else self.feature_distance.classes,
            views=loader_views(self.views),
        )

    def build(self, num_classes: int) -> OnlineSelfTraining:
        """Return the objective."""
        return OnlineSelfTraining(self, num_classes)

    def small(self) -> OnlineSelfTrainingConfig:
        """Return this configuration for short runs: a teacher that follows soon and is sure of fewer pixels.

        Without feature distance, and with hidden pixels in place of tokens: it has a ResNet of random weights.
        """
        masked = self.masked
        if masked is not None and masked.patch == "token":
            masked = replace(masked, patch=MaskConfig.patch)
        return replace(
            self,
            decay=min(self.decay, 0.99),
            threshold=self.threshold if self.threshold == "balanced" else min(self.threshold, 0.9),
            feature_distance=None,
            masked=masked,
        )


@dataclass
class StudentView:
    """Numbers that were drawn for a view of the student.

    Attributes:
        strong: of its photometric changes.
        boxes: int32 ``[N, 4]``, of the next image in it.
        chance: uniform ``[N, C]``, which choose the classes that are pasted.
        factors: of the channels of its features, float ``[N, channels]``.
    """

    strong: Tensor
    boxes: Tensor | None = None
    chance: Tensor | None = None
    factors: Tensor | None = None


@dataclass
class OnlineSelfTrainingBatch:
    """Images of one step, and the numbers that were drawn for them.

    Attributes:
        labelled: labelled images by the loss's name.
        target: unlabelled target images, uint8 ``[N, 3, H, W]``.
        views: photometric views of them for the teacher.
        student: the student's views, one or two.
        partner: labelled images whose classes are pasted.
        masked: numbers of the masked view's changes, and its patches, bool ``[N, 1, rows, columns]``.
    """

    labelled: dict[str, Batch]
    target: Tensor
    views: list[Tensor]
    student: list[StudentView]
    partner: Batch | None = None
    masked: tuple[Tensor, Tensor] | None = None


class View(NamedTuple):
    """Images uint8 ``[N, 3, H, W]`` with labels uint8 and weights float32 of their pixels, ``[N, H, W]``."""

    image: Tensor
    label: Tensor
    weight: Tensor


class OnlineSelfTraining(Objective):
    """Teacher: the student's moving average labels weak views. Student: mixed, strong and masked views of them."""

    histogram: Tensor

    def __init__(self, config: OnlineSelfTrainingConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.token = 0  # side of the backbone's patches, where tokens are hidden
        # The teacher's confidences by class, [C, 64 bins], of about the steps that it is an average of.
        self.register_buffer("histogram", torch.zeros(num_classes, 64))

    def on_round_start(self, model: nn.Module) -> None:
        """Start the teacher from the network, and keep the backbone that features stay near."""
        self.teacher = MeanTeacher(model, self.config.decay)
        if (distance := self.config.feature_distance) is not None:
            backbone = require_backbone(model, "feature_distance").backbone
            self.feature_distance = FeatureDistance(distance, backbone, self.class_names)
        if self.config.channel_dropout is not None:
            self.channels = sum(set(require_backbone(model, "channel_dropout").backbone.channels))
        if (mask := self.config.masked) is not None and mask.patch == "token":
            self.token = require_tokens(model, "masked.patch token").patch

    def after_step(self, model: nn.Module) -> None:
        """Let the teacher follow the student."""
        self.teacher.follow(model)

    def result(self, model: nn.Module) -> nn.Module:
        """Return the teacher's network where it is the round's result."""
        return self.teacher.network if self.config.result == "teacher" else model

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> OnlineSelfTrainingBatch:
        """Draw boxes, classes, photometric changes and patches."""
        config, target = self.config, batch.unlabelled
        size, classes = image_size(target), self.num_classes
        device = target.image.device

        def draw(numbers: Callable[[int], Tensor], images: Tensor = target.image) -> Tensor:
            """Draw on the CPU, where the generator is."""
            return ctx.draw(numbers, len(images)).to(device, non_blocking=True)

        def draw_changes(strong: StrongConfig, images: Tensor = target.image) -> Tensor:
            return draw(lambda n: draw_strong(n, strong, ctx.generator), images)

        def draw_view() -> StudentView:
            view = StudentView(draw_changes(config.strong))
            if (mix := config.cut_mix) is not None:
                view.boxes = draw(lambda n: draw_boxes(n, size, mix, ctx.generator))
            if config.class_mix is not None:
                view.chance = draw(lambda n: torch.rand(n, classes, generator=ctx.generator))
            return view

        if config.translate != "none":
            source = translated_source(batch, config.translate, config.fda_beta)
            batch = Batches(source, batch.get("labelled"), batch.unlabelled)
        labelled = labelled_images(batch, config.domain)
        if (strong := config.augment_labelled) is not None:
            for name, images in labelled.items():
                changed = apply_strong(images.image, draw_changes(strong, images.image))
                labelled[name] = replace(images, image=changed)
        views = photometric_views(target, config.views, ctx.augment)
        if config.cut_mix is not None and (found := len(target.image) * distributed.get_world_size()) < 2:
            raise bad("batch size of unlabelled images", found, "2 or more, as cut_mix mixes different ones")
        made = OnlineSelfTrainingBatch(labelled, target.image, views, [draw_view()])
        if config.class_mix is not None:
            even = draw(lambda n: torch.rand(n, generator=ctx.generator) < 0.5)
            made.partner = choose_partner(batch, config.class_mix.partner, even)
        if (dropout := config.channel_dropout) is not None:
            factors = draw(lambda n: draw_factors(n, self.channels, dropout, ctx.generator))
            (first,) = made.student
            made.student = [replace(first, factors=factors), replace(draw_view(), factors=2 - factors)]
        if (mask := config.masked) is not None:
            changes = draw_changes(config.strong)
            made.masked = changes, draw(lambda n: draw_visible(n, size, mask, ctx.generator, self.token))
        return made

    def training_step(self, model: nn.Module, batch: OnlineSelfTrainingBatch, ctx: StepContext) -> Losses:
        """Label by the teacher, then minimise the losses of labelled images, of the student's and the masked view."""
        config = self.config

        # Teacher: the surest or the mean of its views labels every pixel, and the labels have weights.
        target = self._labelled_by_teacher(batch, ctx)
        losses = {"sure": target.weight.mean()}

        # Labelled images; those of the source keep the features of things near the pretrained ones.
        for name, images in batch.labelled.items():
            of_source, label = name == "seg" and config.domain != "labelled", images.required_label
            distance: Tensor | float = 0.0
            if of_source and config.feature_distance is not None:
                maps = ctx.encode(model, images.image, domain="source")
                output = ctx.decode(model, maps)
                losses["features"] = self.feature_distance(maps[-1], ctx.normalize(images.image), label)
                distance = config.feature_distance.weight * losses["features"]
            else:
                output = ctx.forward(model, images.image, domain="source" if of_source else "target")
            losses[name] = segmentation_loss(
                output, label, config.auxiliary_weight, class_weights=self.class_weights
            )
            ctx.backward(losses[name] + distance)

        # Student: one or two views with strong changes, two of them with complementary halves of the channels.
        strong = []
        for drawn in batch.student:
            view = self._student_view(target, batch.partner, drawn)
            image = apply_strong(view.image, drawn.strong)
            if drawn.factors is None:
                output = ctx.forward(model, image, domain="target")
            else:
                maps = ctx.encode(model, image, domain="target")
                output = ctx.decode(model, scale_channels(maps, drawn.factors))
            loss = segmentation_loss(output, view.label, config.auxiliary_weight, pixel_weight=view.weight)
            ctx.backward(config.weight / len(batch.student) * loss)
            strong.append(loss.detach())
        losses["strong"] = torch.stack(strong).mean()

        # Masked view: all pixels of the target image, the hidden ones from their surroundings.
        if config.masked is not None and batch.masked is not None:
            changes, patches = batch.masked
            image = apply_strong(target.image, changes)
            with keep_statistics(model):  # evaluation sees no masked images
                if self.token:
                    output = ctx.decode(model, ctx.encode(model, image, domain="target", hidden=~patches))
                else:
                    visible = patches_to_pixels(patches, target.label.shape[1:])
                    output = ctx.forward(model, image, domain="target", visible=visible)
            losses["masked"] = segmentation_loss(
                output, target.label, config.auxiliary_weight, pixel_weight=target.weight
            )
            ctx.backward(config.masked.weight * losses["masked"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _student_view(self, target: View, partner: Batch | None, drawn: StudentView) -> View:
        """Return the target images with a box of another one, then with classes of a labelled image."""
        view, mix = target, self.config.class_mix
        if drawn.boxes is not None:
            view = mixed(View(*map(of_the_next, target)), target, drawn.boxes)
        if mix is not None and partner is not None and drawn.chance is not None:
            label = partner.required_label
            pasted = View(partner.image, label, torch.ones_like(target.weight))
            view = mixed(pasted, view, sample_classes(label, drawn.chance, mix.share))
        return view

    @torch.no_grad()
    def _labelled_by_teacher(self, batch: OnlineSelfTrainingBatch, ctx: StepContext) -> View:
        """Return the target images with the labels of the teacher's views and the weights of their pixels."""
        config = self.config
        views = [*batch.views, *([batch.views[0].flip(-1)] if config.flip_view else [])]
        outputs = [ctx.forward(self.teacher, view, domain="target") for view in views]
        height, width = batch.target.shape[-2:]
        pseudo = ops.pseudo_label(
            [output.primary for output in outputs],
            (height, width),
            threshold=0.0,
            flips=[*[False] * len(batch.views), True] if config.flip_view else None,
            reduce=config.reduce,
            align_corners=outputs[0].align_corners,
        )
        weight = pixel_weights(pseudo.confidence, self._thresholds(pseudo), config.share)
        return View(batch.target, pseudo.label, weight)

    def _thresholds(self, pseudo: ops.PseudoLabel) -> float | Tensor:
        """Return the confidence from which a pixel is sure, float32 ``[N, H, W]`` where it depends on its class.

        The confidences of the step are counted first, so that its own classes have thresholds from the beginning.
        """
        if self.config.threshold != "balanced":
            return self.config.threshold
        counted = distributed.all_reduce_sum(pseudo.histogram).sum(1)
        self.histogram.mul_(self.config.decay).add_(counted)
        counts = self.histogram.long()  # whole numbers have the same sums in any order
        return balanced_thresholds(counts, self.config.portion, self.config.cap)[pseudo.label.int()]


def pixel_weights(
    confidence: Tensor, threshold: float | Tensor, share: Literal["image", "batch", "pixel"]
) -> Tensor:
    """Return the weights of the teacher's labels, float32 ``[N, H, W]``, from its float32 ``confidence``.

    A pixel is sure where its confidence is at least ``threshold``, a number or its own, ``[N, H, W]``. "pixel": 1 for
    sure pixels, 0 for the others; "image": the share of sure pixels of the image; "batch": that of the batch of all
    processes (collective).
    """
    sure = (confidence >= threshold).float()
    if share == "pixel":
        return sure
    part = sure.mean((1, 2), keepdim=True) if share == "image" else distributed.all_reduce_mean(sure.mean())
    return part.expand_as(sure)


def mixed(inside: View, outside: View, region: Tensor) -> View:
    """Return ``inside`` where ``region`` of :func:`udas_fast.ops.region_mix` is, ``outside`` elsewhere."""
    labels = inside.label, outside.label
    image, label = ops.region_mix(inside.image, outside.image, *labels, region)
    weight, _ = ops.region_mix(inside.weight[:, None], outside.weight[:, None], *labels, region)
    return View(image, label, weight[:, 0])


def labelled_images(batch: Batches, domain: Literal["source", "labelled", "both"]) -> dict[str, Batch]:
    """Return the labelled images of a step by the loss's name."""
    if domain == "labelled":
        return {"seg": batch.labelled}
    labelled = batch.get("labelled") if domain == "both" else None
    return {"seg": batch.source} if labelled is None else {"seg": batch.source, "seg_labelled": labelled}


def choose_partner(
    batch: Batches, partner: Literal["source", "labelled", "both"], chosen: Tensor
) -> Batch | None:
    """Return the images whose classes are pasted, None where there are none.

    "both": labelled target images where ``chosen``, bool ``[N]``, is true, source images elsewhere.
    """
    labelled = batch.get("labelled")
    if partner == "labelled":
        return labelled
    if partner == "source" or labelled is None:
        return batch.source
    image = torch.where(chosen[:, None, None, None], labelled.image, batch.source.image)
    label = torch.where(chosen[:, None, None], labelled.required_label, batch.source.required_label)
    return Batch(image, label, batch.source.ids)
