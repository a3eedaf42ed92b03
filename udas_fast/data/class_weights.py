"""Weights of classes in the cross-entropy: a rare class counts more."""

from __future__ import annotations

import numpy as np

from udas_fast.errors import bad


def class_weights(counts: np.ndarray) -> tuple[float, ...]:
    """Return 1 / ln(1.02 + share) for each class, scaled to a mean of 1 over the classes that occur (ENet, 2016).

    A class that does not occur has weight 0.

    Args:
        counts: labelled pixels of each class, ``[C]``, such as :attr:`udas_fast.data.DatasetReport.counts`.

    Raises:
        InputError: no labelled pixel.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1 or not counts.sum() > 0 or (counts < 0).any():
        raise bad(
            "class weights", f"counts {counts.tolist()}"[:80], "labelled pixels of each class, some above 0"
        )
    weights = np.where(counts > 0, 1 / np.log(1.02 + counts / counts.sum()), 0.0)
    return tuple((weights / weights[counts > 0].mean()).tolist())
