"""Quality of pseudo-labels: how many are kept, and how many of these are right."""

from __future__ import annotations

from typing import Any

import numpy as np


def pseudo_label_quality(histogram: np.ndarray, counts: np.ndarray | None) -> dict[str, Any]:
    """Return kept shares and accuracies, by class of the pseudo-label and over all; None where nothing was counted.

    Args:
        histogram: int64 ``[C, 2, 64]``, pixels by pseudo-label, kept (0) or dropped (1).
        counts: int64 ``[C, C]``, kept pixels by true class and pseudo-label; None without labels.
    """
    kept = histogram.sum(2)
    report = {
        "kept_share": [_ratio(a, a + b) for a, b in kept],
        "kept_share_all": _ratio(kept[:, 0].sum(), kept.sum()),
        "accuracy": None,
        "accuracy_all": None,
        "labelled": counts is not None,
    }
    if counts is not None:
        report["accuracy"] = [_ratio(counts[c, c], counts[:, c].sum()) for c in range(len(counts))]
        report["accuracy_all"] = _ratio(counts.trace(), counts.sum())
    return report


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
