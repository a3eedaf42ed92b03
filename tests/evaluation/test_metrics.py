"""Scores against counts of pixel sets, and their round trip through JSON."""

import json
import math

import numpy as np
import pixel_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from udas_fast.data import CITYSCAPES
from udas_fast.errors import InputError
from udas_fast.evaluation import Protocol, Scores


def scores_of(matrix, names=None) -> Scores:
    matrix = torch.as_tensor(matrix, dtype=torch.int64)
    names = names or tuple(f"class {i}" for i in range(len(matrix)))
    protocol = Protocol(dataset="d", split="val", images=1, input_size=None, num_classes=len(matrix))
    return Scores(matrix, names, protocol)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_scores_equal_those_of_pixel_sets(seed, classes):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, 60)
    label[rng.random(60) < 0.3] = 255
    prediction = rng.integers(0, classes, 60)
    scores = scores_of(oracle.confusion(prediction, label, classes))
    valid = label != 255
    expected = oracle.iou(prediction, label, classes)
    np.testing.assert_allclose(scores.iou.numpy(), expected, rtol=1e-12)
    assert scores.miou == pytest.approx(np.nanmean(expected), rel=1e-12)
    for c in range(classes):
        truth, guess = (label == c) & valid, (prediction == c) & valid
        hits = (truth & guess).sum()
        for name, count in (("recall", truth.sum()), ("precision", guess.sum())):
            value = getattr(scores, name)[c].item()
            assert math.isnan(value) if count == 0 else value == pytest.approx(hits / count)
        if truth.any() and guess.any() and hits:
            both = 2 / (1 / scores.precision[c].item() + 1 / scores.recall[c].item())
            assert scores.f1[c].item() == pytest.approx(both)  # the harmonic mean
    shares = [(prediction == c)[label == c].mean() for c in range(classes) if (label == c).any()]
    assert scores.accuracy_mean == pytest.approx(np.mean(shares))
    assert scores.pixel_accuracy == pytest.approx((prediction == label)[valid].mean(), rel=1e-6)


def test_classes_that_do_not_occur_are_left_out_of_the_mean_and_false_ones_are_not():
    absent = scores_of([[4, 0, 0], [2, 2, 0], [0, 0, 0]])
    assert math.isnan(absent.iou[2])
    assert absent.miou == pytest.approx((4 / 6 + 2 / 4) / 2)
    predicted = scores_of([[4, 0, 1], [2, 2, 0], [0, 0, 0]])
    assert predicted.miou == pytest.approx((4 / 7 + 2 / 4 + 0) / 3)


def test_absent_classes_and_those_that_are_only_predicted_are_named_and_stored():
    scores = scores_of([[4, 0, 1, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], ("a", "b", "c", "d"))
    assert (scores.absent, scores.unlabelled) == (("d",), ("c",))
    assert scores.mean_note == "mean over 3 of 4 classes; absent: d; predicted but in no label, IoU 0: c"
    stored = scores.to_dict()
    assert (stored["miou_classes"], stored["absent"]) == (3, ["d"])
    assert stored["miou"] == pytest.approx(sum(v for v in stored["iou"].values() if v is not None) / 3)
    assert scores_of([[1, 0], [0, 1]]).mean_note == "mean over all 2 classes"


def test_synthia_means_are_over_sixteen_and_thirteen_classes():
    matrix = torch.diag(torch.arange(1, 20))
    matrix[:, 0] += 10
    scores = scores_of(matrix, CITYSCAPES.names)
    iou = scores.iou.tolist()
    lacks = {"terrain", "truck", "train"}
    sixteen = [v for n, v in zip(CITYSCAPES.names, iou, strict=True) if n not in lacks]
    thirteen = [
        v for n, v in zip(CITYSCAPES.names, iou, strict=True) if n not in lacks | {"wall", "fence", "pole"}
    ]
    assert (len(sixteen), len(thirteen)) == (16, 13)
    assert scores.subset_means == {
        "synthia16": pytest.approx(np.mean(sixteen)),
        "synthia13": pytest.approx(np.mean(thirteen)),
    }
    assert scores_of(matrix).subset_means == {}


def test_scores_survive_a_round_trip_through_json():
    scores = scores_of([[4, 0, 0], [2, 2, 0], [0, 0, 0]])
    text = json.dumps(scores.to_dict(), allow_nan=False)
    back = Scores.from_dict(json.loads(text))
    assert json.loads(text)["iou"]["class 2"] is None
    assert back.to_dict() == scores.to_dict()
    assert back.protocol == scores.protocol
    assert torch.equal(back.matrix, scores.matrix)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("iou"),
        lambda d: d["protocol"].pop("dataset"),
        lambda d: d["confusion_matrix"].pop(),
        lambda d: d["confusion_matrix"][0].pop(),
        lambda d: d.clear(),
    ],
)
def test_other_json_is_refused(spoil):
    content = scores_of([[1, 0], [0, 1]]).to_dict()
    spoil(content)
    with pytest.raises(
        InputError, match=r"scores: found other content \(.*\), expected that of Scores\.to_dict"
    ):
        Scores.from_dict(content)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 2).long(), torch.zeros(3, 3), torch.zeros(2, 2).long()])
def test_a_matrix_of_another_form_is_refused(matrix):
    protocol = Protocol(dataset="d", split="val", images=1, input_size=None, num_classes=3)
    with pytest.raises(InputError, match=r"confusion matrix: found torch.*expected torch.int64 \[3, 3\]"):
        Scores(matrix, ("a", "b", "c"), protocol)


def test_protocol_prints_everything_that_a_comparison_needs():
    fields = {"dataset": "camvid", "split": "val", "images": 101, "input_size": (180, 240), "num_classes": 11}
    text = str(Protocol(**fields))
    for part in ("camvid val", "101 images", "180x240", "11 classes", "labels native", "scales 1", "fp32"):
        assert part in text
    assert Protocol(**fields) != Protocol(**fields, align_corners=True)
    with pytest.raises(ValidationError):
        Protocol(**fields, precision="fp8")
    with pytest.raises(ValidationError):
        Protocol(**fields, flip=True)
