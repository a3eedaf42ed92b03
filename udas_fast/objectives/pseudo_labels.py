"""Pseudo-labels: a teacher, the views of an image that it sees, their reduction and its thresholds (UDAS 3.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.config import config_dataclass
from udas_fast.data import Batch
from udas_fast.data.augment import ViewKind
from udas_fast.errors import bad
from udas_fast.evaluation.views import geometric_views
from udas_fast.models import SegmentationOutput, to_output

Share = Annotated[float, Field(gt=0, le=1)]
MAX_VIEWS = 16  # of ops.pseudo_label


@config_dataclass
class PseudoLabelConfig:
    """Views of an image that the teacher sees, and selection of its labels; the defaults are UDAS's."""

    # K views (UDAS 4.2.5: 3): the image as it is, weakly or strongly augmented.
    views: Annotated[tuple[ViewKind, ...], Field(min_length=1, max_length=MAX_VIEWS)] = (
        "identity",
        "strong",
        "strong",
    )
    flip_view: bool = False  # a mirrored view as well, at every scale
    scales: tuple[
        Annotated[float, Field(gt=0)], ...
    ] = ()  # views of these scales as well; MRNet: 1.25, flipped
    antialias: bool = True  # of the smaller scales; MRNet's code has none
    # T of softmax(logits / T); below 1 it sharpens (UDAS 3.5: "sharpening is needed", without a number).
    temperature: Annotated[float, Field(gt=0)] = 1.0
    heads: Literal["primary", "ensemble"] = "primary"  # "ensemble": softmax(0.5·auxiliary + primary) (MRNet)
    reduce: Literal["max", "mean"] = "max"  # maximum confidence map (UDAS 3.5); "mean": MixMatch, MRNet
    # Confidence from which a pixel is kept (UDAS 4.2.5); "balanced": a threshold for each class.
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["balanced"] = 0.6
    portion: Share = 0.5  # "balanced": the share of each class's pixels that is kept (DDM)
    cap: Share = 0.9  # "balanced": no class needs more confidence than this (DDM)
    # When labels are made: in every step, or of all images once before the round's first step.
    labels: Literal["online", "disk"] = "online"

    def __post_init__(self) -> None:
        count = len(self.views) + (1 + len(self.scales)) * (1 + self.flip_view) - 1
        if count > MAX_VIEWS:
            raise bad("views", f"{count} with scales and flips", f"at most {MAX_VIEWS}")


def loader_views(kinds: Sequence[ViewKind]) -> tuple[ViewKind, ...]:
    """Return those of ``kinds`` that a loader makes: all but the image itself."""
    return tuple(kind for kind in kinds if kind != "identity")


def photometric_views(
    images: Batch, kinds: Sequence[ViewKind], augment: Callable[[Tensor, ViewKind], Tensor]
) -> list[Tensor]:
    """Return a view of each of ``kinds``, uint8 ``[N, 3, H, W]``; those that the loader made where it did."""
    if images.views is None:
        return [images.image if kind == "identity" else augment(images.image, kind) for kind in kinds]
    made = iter(images.views.unbind(1))
    return [images.image if kind == "identity" else next(made) for kind in kinds]


def balanced_thresholds(counts: Tensor, portion: float = 0.5, cap: float = 0.9) -> Tensor:
    """Return thresholds by class, float32 ``[C]``: the confidence that ``portion`` of its pixels reach, at most cap.

    A fixed threshold drops the classes that a teacher is never sure of; this keeps the surer half of each (DDM,
    "portion 0.5, confidence 0.9"). ``counts`` are those of :func:`udas_fast.ops.pseudo_label` by class and confidence,
    ``[C, 64]``, kept and dropped, summed over images; a class without pixels gets ``cap``.
    """
    reach = counts.flip(1).cumsum(1).flip(1)  # pixels of at least each bin's confidence
    bins = (reach >= portion * counts.sum(1, keepdim=True)).sum(1) - 1
    return torch.where(counts.sum(1) > 0, (bins / counts.shape[-1]).clamp(max=cap), cap).float()


class PseudoLabeller(nn.Module):
    """Labels images by a teacher's view of them.

    The confidences of a round are counted by class, as balanced thresholds follow from them.

    Args:
        config: views, reduction and thresholds.
        num_classes: classes of the teacher.
    """

    histogram: Tensor

    def __init__(self, config: PseudoLabelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self._teacher: list[nn.Module] = []  # a list keeps it out of state_dict
        # Confidences of the round by class, [C, kept or dropped, 64 bins].
        self.register_buffer("histogram", torch.zeros(num_classes, 2, 64, dtype=torch.int64))

    @property
    def teacher(self) -> nn.Module:
        """Network that labels."""
        return self._teacher[0]

    def set_teacher(self, network: nn.Module) -> None:
        """Let ``network`` label; its owner saves it."""
        self._teacher = [network]

    def thresholds(self, histogram: Tensor | None = None) -> float | Tensor:
        """Return the confidence from which a pixel is kept, float32 ``[C]`` where it depends on the class.

        ``histogram``: confidences that balanced thresholds follow from; None: those of the round so far.
        """
        config = self.config
        if config.threshold == "balanced":
            histogram = self.histogram if histogram is None else histogram
            return balanced_thresholds(histogram.sum(1), config.portion, config.cap)
        return config.threshold

    def photometric_views(self, images: Batch, augment: Callable[[Tensor, ViewKind], Tensor]) -> list[Tensor]:
        """Return :func:`photometric_views` of the kinds in the configuration."""
        return photometric_views(images, self.config.views, augment)

    @torch.no_grad()
    def views(
        self, photometric: Sequence[Tensor], normalize: Callable[[Tensor], Tensor]
    ) -> tuple[list[SegmentationOutput], list[bool]]:
        """Return the teacher's output for each of its K views, and whether a view is mirrored.

        ``photometric`` are :meth:`photometric_views`; the geometric views are those of the first one of them.
        """
        self.teacher.eval()
        config = self.config
        views = [(normalize(view), False) for view in photometric]
        views += geometric_views(views[0][0], config.scales, config.flip_view, antialias=config.antialias)
        return [to_output(self.teacher(view)) for view, _ in views], [mirrored for _, mirrored in views]

    def label(
        self,
        views: Sequence[SegmentationOutput],
        flips: Sequence[bool],
        size: tuple[int, int],
        threshold: float | Tensor,
    ) -> ops.PseudoLabel:
        """Return the pseudo-labels of :meth:`views` at ``size`` (H, W)."""
        if self.config.heads == "ensemble":
            logits = [view.ensemble() for view in views]
        else:
            logits = [view.primary for view in views]
        return ops.pseudo_label(
            logits,
            size,
            threshold=threshold,
            temperature=self.config.temperature,
            flips=list(flips),
            reduce=self.config.reduce,
            align_corners=views[0].align_corners,
        )

    def label_online(
        self, views: Sequence[SegmentationOutput], flips: Sequence[bool], size: tuple[int, int]
    ) -> Tensor:
        """Return labels uint8 ``[N, H, W]`` at the thresholds of the round so far, and count their confidences."""
        pseudo = self.label(views, flips, size, self.thresholds())
        self.histogram += distributed.all_reduce_sum(pseudo.histogram)
        return pseudo.label
