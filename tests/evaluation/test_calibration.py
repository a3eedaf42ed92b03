"""Reliability against float64 by pixel, and the temperature that fits labels drawn from a known softmax."""

from __future__ import annotations

import json
import math

import numpy as np
import pixel_oracle as oracle
import pytest
import torch
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.errors import InputError
from udas_fast.evaluation import Reliability, Scores, evaluate, fit_temperature
from udas_fast.evaluation.calibration import BINS
from udas_fast.models import normalize


def _expected(model, batches, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and whether it is right of every labelled pixel, in float64."""
    confidence, right = [], []
    for batch in batches:
        with torch.no_grad():
            logits = model.eval()(normalize(batch.image)).primary[0].double().numpy()
        label = batch.label[0].numpy()
        full = oracle.upsample(logits, label.shape, False) / temperature
        full = np.exp(full - full.max(0))
        full /= full.sum(0)
        confidence.append(full.max(0)[label != 255])
        right.append((full.argmax(0) == label)[label != 255])
    return np.concatenate(confidence), np.concatenate(right)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_reliability_and_its_error(model, batches, classes, protocol, temperature):
    scores = evaluate(model, batches, classes, protocol(temperature=temperature))
    confidence, right = _expected(model, batches, temperature)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = scores.reliability
    assert (found.right + found.wrong).sum() == len(right)
    counts = np.bincount(bins[right], minlength=BINS)
    assert np.abs(found.right.numpy() - counts).sum() <= 4  # at the edges of bins, within rounding
    # Guo et al., eq. 5
    error = sum(
        abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(BINS) if (bins == b).any()
    )
    assert scores.ece == pytest.approx(error / len(right), abs=2e-3)
    plain = evaluate(model, batches, classes, protocol())
    assert torch.equal(plain.matrix, scores.matrix)


def test_confidences_that_are_always_right_or_wrong():
    zero, counts = torch.zeros(BINS, dtype=torch.int64), torch.zeros(BINS, dtype=torch.int64)
    counts[-1] = 10
    confidence = torch.zeros(BINS, dtype=torch.float64)
    confidence[-1] = 1.0
    assert Reliability(counts, zero, confidence).ece == 0
    assert Reliability(zero, counts, confidence).ece == 1
    assert math.isnan(Reliability(zero, zero, confidence).ece)
    with pytest.raises(InputError, match=r"reliability.right: found torch.float32 \[3\]"):
        Reliability(torch.zeros(3), zero, confidence)


def test_reliability_is_in_the_scores_json(model, batches, classes, protocol):
    scores = evaluate(model, batches, classes, protocol())
    back = Scores.from_dict(json.loads(json.dumps(scores.to_dict(), allow_nan=False)))
    assert torch.equal(back.reliability.right, scores.reliability.right)
    assert back.ece == scores.ece
    damaged = scores.to_dict() | {"reliability": {"right": [1], "wrong": [1], "confidence": [1.0]}}
    with pytest.raises(InputError, match="scores: found other content"):
        Scores.from_dict(damaged)


class Table(nn.Module):
    """Logits that depend on the pixel alone, each about ``sharp`` times too large."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 1)
        self.sharp = sharp

    def forward(self, x: Tensor) -> Tensor:
        return self.sharp * self.conv(x)


def _sampled(count: int = 4) -> list[Batch]:
    """Return images with labels drawn from the softmax of Table(1)."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        image = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            chance = Table(1.0)(normalize(image)).softmax(1)[0].flatten(1).T
        label = torch.multinomial(chance, 1, generator=generator).view(1, 96, 128)
        made.append(Batch(image, label.to(torch.uint8), [str(i)]))
    return made


@pytest.mark.parametrize("sharp", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_is_too_sharp(sharp, classes, protocol):
    batches = _sampled()
    temperature = fit_temperature(Table(sharp), batches)
    assert temperature == pytest.approx(sharp, rel=0.06)  # of 49,152 draws
    before, after = (
        evaluate(Table(sharp), batches, classes, protocol(images=4, input_size=(96, 128), temperature=t)).ece
        for t in (1.0, temperature)
    )
    assert after < 0.015  # the deviation of 768 draws a bin alone gives 0.01
    assert sharp == 1 or before > 2 * after


def test_the_temperature_is_the_minimum_of_the_loss():
    batches = _sampled(1)
    found = fit_temperature(Table(2.0), batches)

    def loss(temperature: float) -> float:
        logits = Table(2.0)(normalize(batches[0].image)).double() / temperature
        return nn.functional.cross_entropy(logits, batches[0].label.long()).item()

    grid = np.linspace(1.5, 2.5, 401)
    best = grid[np.argmin([loss(t) for t in grid])]
    assert found == pytest.approx(best, rel=0.01)


def test_labels_that_no_temperature_fits(classes):
    batches = _sampled(1)
    with torch.no_grad():
        batches[0].label = Table(1.0)(normalize(batches[0].image)).argmax(1).to(torch.uint8)
    with pytest.raises(InputError, match="temperature: found no least loss from 1/4 to 8"):
        fit_temperature(Table(1.0), batches)


def test_counts_below_zero_are_refused():
    zero, negative = torch.zeros(BINS, dtype=torch.int64), torch.full((BINS,), -1)
    with pytest.raises(InputError, match="reliability.wrong: found a number below 0"):
        Reliability(zero, negative, torch.zeros(BINS, dtype=torch.float64))
    with pytest.raises(InputError, match="reliability.confidence: found a number below 0"):
        Reliability(zero, zero, torch.full((BINS,), math.nan, dtype=torch.float64))
