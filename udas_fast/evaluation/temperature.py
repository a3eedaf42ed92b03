"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, 4.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from udas_fast import distributed, ops
from udas_fast.data import Batch
from udas_fast.errors import bad
from udas_fast.evaluation.scoring import device_of, evaluating
from udas_fast.models import normalization_of, normalize, to_output

EXPONENTS = [k / 8 for k in range(-16, 25)]
"""Temperatures that :func:`fit_temperature` compares, as powers of 2: from 1/4 to 8."""


@torch.inference_mode()
def fit_temperature(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the temperature T of softmax(logits / T) that minimises the cross-entropy of the labels (collective).

    T is found on a grid of powers of 2 to 1/8, and between them by a parabola. It changes confidences and no label.

    Args:
        model: a segmentation model; its mode is restored.
        batches: as :func:`udas_fast.evaluation.evaluate` takes them.

    Raises:
        InputError: no labels, or a minimum outside of 1/4 to 8.
    """
    device = device_of(model)
    losses = torch.zeros(len(EXPONENTS), dtype=torch.float64, device=device)
    with evaluating(model):
        for batch in batches:
            label = batch.required_label.to(device)
            output = to_output(model(normalize(batch.image.to(device), normalization_of(model))))
            for i, exponent in enumerate(EXPONENTS):
                logits, corners = output.primary / 2**exponent, output.align_corners
                losses[i] += ops.cross_entropy(logits, label, align_corners=corners, reduction="sum")
    found = distributed.all_reduce_sum(losses.cpu())
    best = int(found.argmin())
    if not 0 < best < len(EXPONENTS) - 1 or not found.isfinite().all():
        expected = "labels that the model is right about more often than not"
        raise bad("temperature", "no least loss from 1/4 to 8", expected)
    left, middle, right = found[best - 1 : best + 2].tolist()
    vertex = (left - right) / (2 * (left - 2 * middle + right))
    return float(2 ** (EXPONENTS[best] + vertex * (EXPONENTS[1] - EXPONENTS[0])))
