"""Bad arguments: each is one InputError that names the argument, what was found and what is expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import random_labels, random_map

from udas_fast import ops
from udas_fast.errors import InputError
from udas_fast.ops import reference

LOGITS = random_map((2, 4, 3, 5), 0)
TARGET = random_labels((2, 8, 9), 4, 0)
SIZE = (8, 9)
WEIGHT = torch.ones((2, 8, 9))
NAN = float("nan")

CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "not a tensor": (lambda: ops.cross_entropy([1.0], TARGET), "logits: found list, expected a tensor"),
    "three axes": (lambda: ops.cross_entropy(LOGITS[0], TARGET), r"logits: found shape \[4, 3, 5\]"),
    "one class": (lambda: ops.entropy(LOGITS[:, :1], SIZE), "logits: found shape .* C from 2 to 256"),
    "257 classes": (
        lambda: ops.entropy(torch.zeros(1, 257, 1, 1), SIZE),
        "logits: found shape .* C from 2 to 256",
    ),
    "no rows": (lambda: ops.entropy(LOGITS[:, :, :0], SIZE), "logits: found shape"),
    "float64": (lambda: ops.cross_entropy(LOGITS.double(), TARGET), "logits: found torch.float64"),
    "integer logits": (lambda: ops.entropy(LOGITS.long(), SIZE), "logits: found torch.int64"),
    "float labels": (lambda: ops.cross_entropy(LOGITS, TARGET.float()), "target: found torch.float32"),
    "int32 labels": (lambda: ops.cross_entropy(LOGITS, TARGET.int()), "target: found torch.int32"),
    "label samples": (lambda: ops.cross_entropy(LOGITS, TARGET[:1]), r"target: found shape \[1, 8, 9\]"),
    "label axes": (lambda: ops.cross_entropy(LOGITS, TARGET[:, None]), "target: found shape"),
    "no pixels": (lambda: ops.cross_entropy(LOGITS, TARGET[:, :0]), "target: found shape"),
    "class weight": (
        lambda: ops.cross_entropy(LOGITS, TARGET, weight=torch.ones(3)),
        "weight: found .*one number",
    ),
    "infinite weight": (
        lambda: ops.cross_entropy(LOGITS, TARGET, weight=torch.tensor([1.0, NAN, 1.0, 1.0])),
        "weight: found a value that is not finite, expected finite numbers",
    ),
    "least label": (
        lambda: ops.cross_entropy(LOGITS, torch.full((2, 8, 9), -(2**63))),
        "target: found label -9223372036854775808, expected 0 to 3 or the ignored 255",
    ),
    "least label of a matrix": (
        lambda: ops.confusion_matrix(LOGITS, torch.full((2, 8, 9), -(2**63)), 4),
        "target: found label -9223372036854775808, expected 0 to 3 or the ignored 255",
    ),
    "integer weight": (
        lambda: ops.cross_entropy(LOGITS, TARGET, weight=torch.ones(4).int()),
        "weight: found",
    ),
    "pixel weight": (
        lambda: ops.cross_entropy(LOGITS, TARGET, pixel_weight=WEIGHT[:, 1:]),
        "pixel_weight: found",
    ),
    "bool weight": (
        lambda: ops.cross_entropy(LOGITS, TARGET, pixel_weight=WEIGHT > 0),
        "pixel_weight: found torch.bool, expected a floating dtype",
    ),
    "weight with gradient": (
        lambda: ops.cross_entropy(LOGITS, TARGET, pixel_weight=WEIGHT.clone().requires_grad_()),
        "pixel_weight: found a tensor that requires grad, expected a constant",
    ),
    "reduction": (
        lambda: ops.cross_entropy(LOGITS, TARGET, reduction="avg"),
        "reduction: found 'avg', expected one",
    ),
    "samples differ": (lambda: ops.symmetric_kl(LOGITS, LOGITS[:1], SIZE), "b: found shape .* of a"),
    "classes differ": (lambda: ops.ensemble_kl(LOGITS, LOGITS[:, :3], SIZE), "auxiliary: found shape"),
    "size of one": (lambda: ops.symmetric_kl(LOGITS, LOGITS, (8,)), r"size: found \(8,\), expected \(height"),
    "size of zero": (lambda: ops.entropy(LOGITS, (0, 9)), "size: found"),
    "side of 2^63": (
        lambda: ops.entropy(LOGITS, (2**63, 9)),
        r"size: found \(9223372036854775808, 9\), expected .* below 2\^30",
    ),
    "boxes of 2^63": (lambda: ops.sample_boxes(2**63, SIZE), "n: found 9223372036854775808, expected 0"),
    "half a pixel": (lambda: ops.entropy(LOGITS, (8.5, 9)), "size: found"),
    "temperature": (
        lambda: ops.distillation_kl(LOGITS, [LOGITS], SIZE, temperature=0.0),
        "temperature: found 0.0, expected a finite number above 0",
    ),
    "one teacher, no list": (lambda: ops.distillation_kl(LOGITS, LOGITS, SIZE), "teachers: found one tensor"),
    "no teachers": (lambda: ops.distillation_kl(LOGITS, [], SIZE), "teachers: found 0 tensors"),
    "a teacher": (
        lambda: ops.distillation_kl(LOGITS, [LOGITS, LOGITS[0]], SIZE),
        r"teachers\[1\]: found shape",
    ),
    "mask dtype": (
        lambda: ops.distillation_kl(LOGITS, [LOGITS], SIZE, mask=WEIGHT),
        "mask: found torch.float32",
    ),
    "mask shape": (
        lambda: ops.distillation_kl(LOGITS, [LOGITS], SIZE, mask=WEIGHT[:1] > 0),
        "mask: found shape",
    ),
    "probabilities of other classes": (
        lambda: ops.soft_cross_entropy(LOGITS, LOGITS[:, 1:], SIZE),
        "probabilities: found shape",
    ),
    "labels of another size": (
        lambda: ops.squared_error(LOGITS, torch.zeros((*WEIGHT.shape[:2], 3), dtype=torch.uint8), SIZE),
        "target: found shape",
    ),
    "a target of floats without classes": (
        lambda: ops.squared_error(LOGITS, WEIGHT, SIZE),
        "target: found torch.float32, expected uint8 or int64",
    ),
    "17 views": (
        lambda: ops.pseudo_label([LOGITS] * 17, SIZE),
        "views: found 17 tensors, expected .* 1 to 16",
    ),
    "a view": (lambda: ops.pseudo_label([LOGITS, LOGITS[:, 1:]], SIZE), r"views\[1\]: found shape"),
    "threshold": (
        lambda: ops.pseudo_label([LOGITS], SIZE, threshold=NAN),
        "threshold: found nan, expected a finite",
    ),
    "thresholds": (
        lambda: ops.pseudo_label([LOGITS], SIZE, threshold=torch.tensor([0.5, NAN, 0.5, 0.5])),
        "threshold: found a value that is not finite",
    ),
    "threshold shape": (
        lambda: ops.pseudo_label([LOGITS], SIZE, threshold=torch.ones(3)),
        "threshold: found",
    ),
    "flips": (lambda: ops.pseudo_label([LOGITS], SIZE, flips=[True, False]), "flips: found .* 1 booleans"),
    "flips of samples": (lambda: ops.pseudo_label([LOGITS], SIZE, flips=[[True]]), "flips: found"),
    "flips tensor": (
        lambda: ops.pseudo_label([LOGITS], SIZE, flips=torch.ones(1)),
        "flips: found torch.float32",
    ),
    "reduce": (
        lambda: ops.pseudo_label([LOGITS], SIZE, reduce="min"),
        "reduce: found 'min', expected one of max",
    ),
    "ignored byte": (lambda: ops.pseudo_label([LOGITS], SIZE, ignore_index=300), "ignore_index: found 300"),
    "num_classes": (lambda: ops.confusion_matrix(LOGITS, TARGET, 5), "logits: found .* num_classes = 5"),
    "num_classes of many": (
        lambda: ops.confusion_matrix(LOGITS, TARGET, torch.ones(3)),
        "num_classes: found Tensor, expected the number of classes",
    ),
    "activation": (
        lambda: ops.upsample(LOGITS, SIZE, activation="sofmax"),
        r"activation: found 'sofmax', expected one of .* \(did you mean 'softmax'\?\)",
    ),
    "no activation": (
        lambda: ops.upsample(LOGITS, SIZE, activation=None),
        "activation: found None, expected one of none, softmax, self_information",
    ),
    "reduction in a list": (
        lambda: ops.entropy(LOGITS, SIZE, reduction=["mean"]),
        r"reduction: found \['mean'\], expected one of none, mean, sum",
    ),
    "upsampled size": (
        lambda: ops.upsample(LOGITS, (8, 9, 1)),
        r"size: found \(8, 9, 1\), expected \(height",
    ),
    "upsampled one class": (lambda: ops.upsample(LOGITS[:, :1], SIZE), "logits: found shape .* C from 2 to"),
    "upsampled float64": (lambda: ops.upsample(LOGITS.double(), SIZE), "logits: found torch.float64"),
    "corners": (
        lambda: ops.upsample(LOGITS, SIZE, align_corners=1),
        "align_corners: found 1, expected True or False",
    ),
    "boxes": (lambda: ops.sample_boxes(-1, SIZE), "n: found -1"),
    "alpha": (lambda: ops.sample_boxes(1, SIZE, alpha=float("inf")), "alpha: found inf"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_argument(name: str) -> None:
    action, sentence = CASES[name]
    with pytest.raises(InputError, match=f"^{sentence}"):
        action()


IMAGE = torch.zeros((2, 3, 8, 9), dtype=torch.uint8)
BOXES = torch.zeros((2, 4), dtype=torch.int32)
MIX: dict[str, tuple[dict[str, Any], str]] = {
    "image axes": ({"inside": IMAGE[0]}, "inside: found shape"),
    "image dtype": ({"inside": IMAGE.int()}, "inside: found torch.int32"),
    "images differ": ({"outside": IMAGE[:, :1]}, "outside: found"),
    "dtypes differ": ({"outside": IMAGE.float()}, "outside: found torch.float32"),
    "label shape": ({"outside_label": TARGET[:, 1:]}, "outside_label: found shape"),
    "label dtypes": ({"outside_label": TARGET.long()}, "outside_label: found torch.int64"),
    "region dtype": ({"region": BOXES.float()}, "region: found torch.float32"),
    "region shape": ({"region": BOXES[:1]}, r"region: found torch.int32 \[1, 4\]"),
    "int64 boxes": ({"region": BOXES.long()}, "region: found torch.int64"),
    "mean": ({"mean": (0.5, 0.5)}, "mean: found .* 3 finite numbers"),
    "std": ({"std": (0.5, 0.0, 0.5)}, "std: found .* numbers other than 0"),
    "not finite": ({"mean": (0.5, NAN, 0.5)}, "mean: found"),
    "gradient": (
        {"inside": IMAGE.float(), "outside": IMAGE.float().requires_grad_()},
        "outside: found a tensor that requires grad, expected a constant",
    ),
    "uint8 result": ({"mean": (0.5,) * 3, "out_dtype": torch.uint8}, "out_dtype: found torch.uint8"),
    "float64 result": ({"out_dtype": torch.float64}, "out_dtype: found torch.float64"),
}


@pytest.mark.parametrize("name", MIX)
def test_bad_mix(name: str) -> None:
    change, sentence = MIX[name]
    good = {
        "inside": IMAGE,
        "outside": IMAGE,
        "inside_label": TARGET,
        "outside_label": TARGET,
        "region": BOXES,
    }
    with pytest.raises(InputError, match=f"^{sentence}"):
        ops.region_mix(**(good | change))


def test_devices_must_agree() -> None:
    with pytest.raises(InputError, match="^target: found device"):
        ops.cross_entropy(LOGITS, TARGET.to("meta"))
    with pytest.raises(InputError, match="^b: found device meta, expected the device of a, cpu"):
        ops.symmetric_kl(LOGITS, LOGITS.to("meta"), SIZE)


def test_the_kernels_check_for_themselves() -> None:
    """torch.ops is public too: nothing that would read out of bounds passes there."""
    kernel = torch.ops.udas_fast.cross_entropy
    with pytest.raises(RuntimeError, match="target: found shape"):
        kernel(LOGITS, TARGET[:1], None, None, 255, False, 1, False)
    with pytest.raises(RuntimeError, match="weight: expected float32"):
        kernel(LOGITS, TARGET, torch.ones(2), None, 255, False, 1, False)
    with pytest.raises(RuntimeError, match="pixel_weight: found shape"):
        kernel(LOGITS, TARGET, None, WEIGHT[:, 1:], 255, False, 1, False)
    with pytest.raises(RuntimeError, match="activation: found 3"):
        torch.ops.udas_fast.upsample(LOGITS, SIZE, 3, False)
    back = torch.ops.udas_fast.upsample_backward
    for gradient in (LOGITS[:1], LOGITS[:, 1:], LOGITS[0], LOGITS.double()):
        with pytest.raises(RuntimeError, match=r"gradient: found .*, expected float32 \[2, 4, H, W\]"):
            back(gradient, LOGITS, 1, False)
    for dtype in (torch.bool, torch.int8, torch.int64, torch.float64):
        with pytest.raises(RuntimeError, match="out_dtype: found .*, expected uint8, float32, float16 or"):
            torch.ops.udas_fast.region_mix(IMAGE, IMAGE, TARGET, TARGET, BOXES, [], [], dtype, False)
    mix = torch.ops.udas_fast.region_mix
    with pytest.raises(RuntimeError, match="std: found 0, expected a finite number other than 0"):
        mix(IMAGE, IMAGE, TARGET, TARGET, BOXES, [], [1.0, 0.0, 1.0], torch.float32, False)
    with pytest.raises(RuntimeError, match="mean: found nan, expected a finite number"):
        mix(IMAGE, IMAGE, TARGET, TARGET, BOXES, [NAN] * 3, [], torch.float32, False)
    with pytest.raises(RuntimeError, match="reduction: found 3, expected 0 to 2"):
        kernel(LOGITS, TARGET, None, None, 255, False, 3, False)
    label = torch.ops.udas_fast.pseudo_label
    for threshold, temperature, flipped, ignored, sentence in (
        (NAN, 1.0, 0, 255, "threshold: found nan, expected a finite number"),
        (0.5, 0.0, 0, 255, "temperature: found 0, expected a finite number above 0"),
        (0.5, 1.0, 2, 255, "flipped_views: found 2, expected a bit for each of 1 views"),
        (0.5, 1.0, 0, 256, "ignore_index: found 256, expected 0 to 255"),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            label([LOGITS], SIZE, threshold, None, temperature, None, flipped, False, False, ignored)


def test_a_meta_tensor_beside_a_real_one_gives_no_memory_as_it_was() -> None:
    """torch takes the shapes' function for any meta tensor, and its results would be on the other's device."""
    with pytest.raises(
        InputError, match="tensors of cross_entropy: found devices cpu and meta, expected one"
    ):
        torch.ops.udas_fast.cross_entropy(LOGITS, TARGET.to("meta"), None, None, 255, False, 0, False)
    with pytest.raises(InputError, match="tensors of upsample_backward: found devices cpu and meta"):
        torch.ops.udas_fast.upsample_backward(LOGITS.to("meta"), LOGITS, 1, False)


@pytest.mark.parametrize("module", [torch.ops.udas_fast.cross_entropy, None])
def test_a_nan_among_class_weights_is_no_loss_of_zero(module: Any) -> None:
    weight = torch.tensor([1.0, NAN, 1.0, 1.0])
    if module is None:
        assert reference.cross_entropy(LOGITS, TARGET, weight=weight).isnan()
    else:
        loss, scale, _ = module(LOGITS, TARGET, weight, None, 255, False, 1, True)
        assert loss.isnan()
        assert scale.isnan()
