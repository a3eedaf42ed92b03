"""Shares and accuracies of pseudo-labels, counted by hand."""

from __future__ import annotations

import numpy as np

from udas_fast.evaluation.pseudo_labels import pseudo_label_quality


def test_quality_by_hand() -> None:
    histogram = np.zeros((3, 2, 64), np.int64)
    histogram[0, 0, 60], histogram[0, 1, 10], histogram[1, 0, 63] = 6, 2, 4
    counts = np.array([[3, 1, 0], [2, 2, 0], [0, 1, 0]])  # one kept pixel of class 0 has no truth
    assert pseudo_label_quality(histogram, counts) == {
        "kept_share": [0.75, 1.0, None],
        "kept_share_all": 10 / 12,
        "accuracy": [3 / 5, 2 / 4, None],
        "accuracy_all": 5 / 9,
        "labelled": True,
    }
    assert pseudo_label_quality(histogram, None)["accuracy"] is None
