"""Reliability of confidences: how often a prediction of each confidence is right (Guo et al., ICML 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from udas_fast.data import IGNORE
from udas_fast.errors import bad

BINS = 64
"""Equal parts of 0 to 1 that a :class:`Reliability` tells apart."""
FINE = 64  # parts of each of them, from which the mean confidence follows to 1/8192


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Right and wrong pixels by confidence, in :data:`BINS` equal parts of 0 to 1.

    Attributes:
        right, wrong: number of pixels, int64 ``[64]``.
        confidence: their mean confidence, float64 ``[64]``; 0 where there are none.

    Raises:
        InputError: other shapes or dtypes, or negative numbers.
    """

    right: Tensor
    wrong: Tensor
    confidence: Tensor

    def __post_init__(self) -> None:
        for name, dtype in (("right", torch.int64), ("wrong", torch.int64), ("confidence", torch.float64)):
            value = getattr(self, name)
            if value.shape != (BINS,) or value.dtype != dtype:
                raise bad(f"reliability.{name}", f"{value.dtype} {list(value.shape)}", f"{dtype} [{BINS}]")
            if not (value >= 0).all():
                raise bad(f"reliability.{name}", "a number below 0, or none", "counts and confidences")

    @classmethod
    def of_histogram(cls, histogram: Tensor) -> Reliability:
        """Return what :func:`confidence_histogram` counted."""
        counts = histogram.cpu().view(2, BINS, FINE)
        right, wrong = counts.sum(2)
        middles = (torch.arange(BINS * FINE, dtype=torch.float64) + 0.5) / (BINS * FINE)
        total = (counts.sum(0) * middles.view(BINS, FINE)).sum(1)
        return cls(right, wrong, total / (right + wrong).clamp(min=1))

    @property
    def accuracy(self) -> Tensor:
        """Share of right pixels of each bin, float64 ``[64]``; NaN where there are none."""
        return self.right.double() / (self.right + self.wrong)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over the pixels, by bin (Guo et al., eq. 5)."""
        count = self.right + self.wrong
        gap = (self.right - count * self.confidence).abs()
        return (gap.sum() / count.sum()).item()

    def to_dict(self) -> dict[str, Any]:
        """Return everything in a form for JSON."""
        return {name: getattr(self, name).tolist() for name in ("right", "wrong", "confidence")}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Reliability:
        """Return the reliability from the content of :meth:`to_dict`."""
        right, wrong = (torch.tensor(content[name], dtype=torch.int64) for name in ("right", "wrong"))
        return Reliability(right, wrong, torch.tensor(content["confidence"], dtype=torch.float64))


def confidence_histogram(label: Tensor, predicted: Tensor, confidence: Tensor) -> Tensor:
    """Count right (first) and wrong pixels by confidence, int64 ``[2 * 64 * 64]``, on the device.

    label, predicted: ``[N, H, W]``, 255 in ``label`` does not count; confidence: ``[N, H, W]`` in 0 to 1.
    """
    cells = BINS * FINE
    cell = (confidence * cells).long().clamp_(0, cells - 1) + cells * (predicted != label)
    return torch.bincount(cell[label != IGNORE], minlength=2 * cells)
