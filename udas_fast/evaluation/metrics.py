"""Scores of a confusion matrix, with the protocol that makes them comparable."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from udas_fast.data import CITYSCAPES
from udas_fast.errors import InputError, bad, first_line
from udas_fast.evaluation.calibration import Reliability

# SYNTHIA lacks terrain, truck and train; its 13-class scores also leave out wall, fence and pole.
SYNTHIA_LACKS = {"synthia16": (9, 14, 16), "synthia13": (3, 4, 5, 9, 14, 16)}


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Protocol:
    """Protocol of a measurement; scores under different protocols are not comparable. Sizes are (H, W)."""

    dataset: str
    split: str
    images: PositiveInt | None  # None before scoring: as many as the batches have
    input_size: tuple[PositiveInt, PositiveInt] | None  # of the network; None: each image's own
    num_classes: PositiveInt
    label_size: Literal["native"] = "native"  # predictions are upsampled to each label's own size
    flips: bool = False
    scales: tuple[float, ...] = (1.0,)
    align_corners: bool = False  # of that upsampling, from the model's output
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    models: PositiveInt = 1  # whose softmaxes' mean is scored, as that of the views is
    temperature: float = 1.0  # of the softmax, for confidences
    selected: str | None = None  # how the model was chosen among those of its run; None: it is the last

    def __str__(self) -> str:
        size = "native size" if self.input_size is None else "{}x{}".format(*self.input_size)
        views = f"scales {', '.join(f'{s:g}' for s in self.scales)}{' with flips' if self.flips else ''}"
        corners = "aligned" if self.align_corners else "not aligned"
        return (
            f"{self.dataset} {self.split}, {self.images} images, {self.num_classes} classes, input {size}, "
            f"labels {self.label_size}, {views}, corners {corners}, {self.precision}"
            f"{f', mean of {self.models} models' if self.models > 1 else ''}"
            f"{f', temperature {self.temperature:.3g}' if self.temperature != 1 else ''}"
            f"{f', selected: {self.selected}' if self.selected else ''}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a confusion matrix, as fractions of 1; NaN where nothing was counted.

    Attributes:
        matrix: int64 [C, C] on the CPU, pixels of true class i (row) that were predicted as class j (column).
        classes: names of the C classes.
        protocol: how the matrix was measured.
        reliability: right and wrong pixels by confidence; None where they were not counted.

    Raises:
        InputError: matrix, classes and protocol differ in the number of classes.
    """

    matrix: Tensor
    classes: tuple[str, ...]
    protocol: Protocol
    reliability: Reliability | None = None

    def __post_init__(self) -> None:
        classes = len(self.classes)
        if self.matrix.shape != (classes, classes) or self.matrix.dtype != torch.int64:
            found = f"{self.matrix.dtype} {list(self.matrix.shape)}"
            raise bad("confusion matrix", found, f"torch.int64 [{classes}, {classes}]")
        if self.protocol.num_classes != classes:
            raise bad("protocol.num_classes", self.protocol.num_classes, f"{classes}, the number of names")

    @property
    def iou(self) -> Tensor:
        """TP / (TP + FP + FN) per class, float64 [C]; NaN for a class neither labelled nor predicted."""
        hit = self.matrix.diagonal().double()
        union = self.matrix.sum(0) + self.matrix.sum(1) - self.matrix.diagonal()
        return hit / union

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, in the labels or in the predictions (:attr:`mean_note`)."""
        return self.iou.nanmean().item()

    @property
    def recall(self) -> Tensor:
        """TP / (TP + FN) per class, which is its accuracy, float64 [C]; NaN for a class without labelled pixels."""
        return self.matrix.diagonal().double() / self.matrix.sum(1)

    @property
    def precision(self) -> Tensor:
        """TP / (TP + FP) per class, float64 [C]; NaN for a class that is never predicted."""
        return self.matrix.diagonal().double() / self.matrix.sum(0)

    @property
    def f1(self) -> Tensor:
        """2·TP / (2·TP + FP + FN) per class, float64 [C]; NaN for a class neither labelled nor predicted."""
        return 2 * self.matrix.diagonal().double() / (self.matrix.sum(0) + self.matrix.sum(1))

    @property
    def accuracy_mean(self) -> float:
        """Mean of :attr:`recall` over the classes with labelled pixels."""
        return self.recall.nanmean().item()

    @property
    def f1_mean(self) -> float:
        """Mean of :attr:`f1` over the classes of :attr:`miou`."""
        return self.f1.nanmean().item()

    @property
    def ece(self) -> float:
        """Expected calibration error (:attr:`Reliability.ece`); NaN where it was not measured."""
        return math.nan if self.reliability is None else self.reliability.ece

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that occur neither in the labels nor in the predictions, and so are not in the mean."""
        return self._where((self.matrix.sum(0) + self.matrix.sum(1)) == 0)

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Classes that no label shows but some predictions do: their IoU is 0, and they are in the mean."""
        return self._where((self.matrix.sum(1) == 0) & (self.matrix.sum(0) > 0))

    def _where(self, mask: Tensor) -> tuple[str, ...]:
        return tuple(name for name, chosen in zip(self.classes, mask.tolist(), strict=True) if chosen)

    @property
    def mean_note(self) -> str:
        """Classes that :attr:`miou` is a mean over, such as ``mean over 17 of 19 classes; absent: truck, train``."""
        count, total = len(self.classes) - len(self.absent), len(self.classes)
        parts = [f"mean over {'all' if count == total else f'{count} of'} {total} classes"]
        if self.absent:
            parts.append(f"absent: {', '.join(self.absent)}")
        if self.unlabelled:
            parts.append(f"predicted but in no label, IoU 0: {', '.join(self.unlabelled)}")
        return "; ".join(parts)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class is predicted."""
        return (self.matrix.diagonal().sum() / self.matrix.sum()).item()

    @property
    def subset_means(self) -> dict[str, float]:
        """Mean IoU over published subsets of the classes: SYNTHIA's 16 and 13 of Cityscapes' 19."""
        if self.classes != CITYSCAPES.names:
            return {}
        iou = self.iou
        return {
            name: iou[[i for i in range(len(iou)) if i not in lacks]].nanmean().item()
            for name, lacks in SYNTHIA_LACKS.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything in a form for JSON; NaN becomes None."""
        return {
            "miou": _or_none(self.miou),
            "miou_classes": len(self.classes) - len(self.absent),
            "absent": list(self.absent),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "accuracy_mean": _or_none(self.accuracy_mean),
            "f1_mean": _or_none(self.f1_mean),
            "ece": _or_none(self.ece),
            "subset_means": {name: _or_none(value) for name, value in self.subset_means.items()},
            "iou": {name: _or_none(v) for name, v in zip(self.classes, self.iou.tolist(), strict=True)},
            "protocol": dataclasses.asdict(self.protocol),
            "confusion_matrix": self.matrix.tolist(),
            "reliability": None if self.reliability is None else self.reliability.to_dict(),
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Scores:
        """Return the scores from the content that :meth:`to_dict` returned; raises InputError for anything else."""
        try:
            names = tuple(str(name) for name in content["iou"])
            matrix = torch.tensor(content["confusion_matrix"], dtype=torch.int64)
            reliability = content.get("reliability")
            return Scores(
                matrix,
                names,
                Protocol(**content["protocol"]),
                None if reliability is None else Reliability.from_dict(reliability),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise bad("scores", f"other content ({first_line(error)})", "that of Scores.to_dict") from error


def read_scores(path: Path) -> dict[str, Scores]:
    """Read the scores by phase from a run's ``scores.json``; empty without one. Raises InputError if damaged."""
    try:
        phases = json.loads(path.read_bytes())["phases"]
        scores = {str(name): Scores.from_dict(content) for name, content in phases.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error
    if any((s.matrix < 0).any() for s in scores.values()):
        raise InputError(f"{path}: damaged (a negative count in a confusion matrix)")
    return scores


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
