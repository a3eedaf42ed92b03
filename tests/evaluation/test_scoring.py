"""Evaluation against counting pixel by pixel, an unchanged model, and errors that name the wrong input."""

import copy

import numpy as np
import pixel_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from udas_fast.data import Batch
from udas_fast.errors import InputError
from udas_fast.evaluation import evaluate, evaluate_dataset
from udas_fast.models import DeepLabV2, normalize


def expected_matrix(model, batches, align_corners: bool) -> np.ndarray:
    total = np.zeros((5, 5), np.int64)
    model = copy.deepcopy(model).eval()
    for batch in batches:
        with torch.no_grad():
            logits = model(normalize(batch.image)).primary[0].double().numpy()
        label = batch.label[0].numpy()
        prediction = oracle.upsample(logits, label.shape, align_corners).argmax(0)
        total += oracle.confusion(prediction, label, 5)
    return total


@pytest.mark.parametrize("align_corners", [False, True])
def test_matrix_is_exact_at_the_labels_own_sizes(model, batches, classes, protocol, align_corners):
    model.align_corners = align_corners
    scores = evaluate(model, batches, classes, protocol())
    expected = expected_matrix(model, batches, align_corners)
    np.testing.assert_array_equal(scores.matrix.numpy(), expected)
    assert scores.matrix.sum() == sum(int((b.label != 255).sum()) for b in batches)
    assert scores.protocol == protocol(align_corners=align_corners)
    assert scores.classes == classes.names


def expected_mean(models, batch, scales, flips) -> np.ndarray:
    """Return the mean of the softmaxes of all views at the label's size, float64 [C, H, W]."""
    image, size = normalize(batch.image), batch.label.shape[1:]
    found = []
    for model in models:
        model = copy.deepcopy(model).eval()
        for scale in scales:
            shape = [round(side * scale) for side in image.shape[-2:]]
            scaled = F.interpolate(image, shape, mode="bilinear", antialias=True) if scale != 1 else image
            for mirrored in (False, True)[: 1 + flips]:
                with torch.no_grad():
                    logits = model(scaled.flip(-1) if mirrored else scaled).primary[0].double().numpy()
                full = oracle.upsample(logits, size, False)
                full = np.exp(full - full.max(0))
                full /= full.sum(0)
                found.append(full[..., ::-1] if mirrored else full)
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    ("count", "scales", "flips"),
    [(1, (1.0,), True), (1, (1.0, 0.75, 1.25), True), (1, (1.5,), True), (2, (1.0,), False)],
)
def test_the_mean_of_views_and_models_is_scored(make_model, batches, classes, protocol, count, scales, flips):
    models = [make_model() for _ in range(count)]
    for model in models[1:]:
        torch.nn.init.normal_(model.conv.weight, std=0.1)
    scores = evaluate(models, batches, classes, protocol(models=count, scales=scales, flips=flips))
    differing = 0
    for batch in batches:
        label = batch.label[0].numpy()
        differing -= oracle.confusion(expected_mean(models, batch, scales, flips).argmax(0), label, 5)
    differing += scores.matrix.numpy()
    assert np.abs(differing).sum() <= 4  # ties within rounding
    one = evaluate(models[0], batches, classes, protocol())
    assert not torch.equal(scores.matrix, one.matrix)
    assert (scores.protocol.models, scores.protocol.flips) == (count, flips)


def test_models_of_other_corners_have_no_mean(make_model, batches, classes, protocol):
    models = [make_model(), make_model()]
    models[1].align_corners = True
    with pytest.raises(InputError, match="models: found logits with aligned corners and without"):
        evaluate(models, batches, classes, protocol(models=2))


def test_each_image_alone(model, batches, classes, protocol):
    by_image = {}
    scores = evaluate(model, batches, classes, protocol(), by_image=by_image)
    assert list(by_image) == ["scene0", "scene1", "scene2"]
    assert torch.equal(sum(by_image.values()), scores.matrix)
    for batch in batches:
        alone = evaluate(model, [batch], classes, protocol(images=1))
        assert torch.equal(by_image[batch.ids[0]], alone.matrix)


def test_corners_matter(model, batches, classes, protocol):
    plain = evaluate(model, batches, classes, protocol())
    with pytest.raises(InputError, match="protocol.align_corners: found True, expected False"):
        evaluate(model, batches, classes, protocol(align_corners=True))
    model.align_corners = True
    aligned = evaluate(model, batches, classes, protocol())
    assert not torch.equal(plain.matrix, aligned.matrix)


def test_only_the_primary_head_is_scored(model, batches, classes, protocol):
    class PrimaryOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return {"out": self.inner(x).primary}

    both = evaluate(model, batches, classes, protocol())
    one = evaluate(PrimaryOnly(), batches, classes, protocol())
    assert torch.equal(both.matrix, one.matrix)


def test_several_images_to_a_batch_count_as_each_alone(model, classes, protocol):
    image = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    label = torch.randint(0, 5, (3, 20, 30), dtype=torch.uint8)
    together = evaluate(model, [Batch(image, label, ["a", "b", "c"])], classes, protocol())
    alone = [Batch(image[i : i + 1], label[i : i + 1], [str(i)]) for i in range(3)]
    assert torch.equal(together.matrix, evaluate(model, alone, classes, protocol()).matrix)


def test_half_precision_is_close_and_recorded_in_the_protocol(model, batches, classes, protocol):
    full = evaluate(model, batches, classes, protocol())
    half = evaluate(model, batches, classes, protocol(precision="bf16"))
    assert half.protocol.precision == "bf16"
    moved = (full.matrix - half.matrix).abs().sum() / full.matrix.sum()
    assert moved < 0.05


def test_the_models_modes_are_restored_and_its_state_is_unchanged(model, batches, classes, protocol):
    model.train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, batches, classes, protocol())
    assert model.training
    assert model.dropout.training
    assert not model.norm.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    with pytest.raises(InputError):
        evaluate(model, batches[:1], classes, protocol())
    assert model.training
    assert not model.norm.training


def test_evaluation_of_a_domain_model_uses_the_targets_statistics(batches, classes, protocol):
    torch.manual_seed(0)
    model = DeepLabV2(5, backbone="resnet18", width=4, norm="domain").train()
    before = evaluate(model, batches, classes, protocol())
    model.backbone.bn1.source_running_mean += 5
    assert torch.equal(evaluate(model, batches, classes, protocol()).matrix, before.matrix)


def test_a_whole_dataset_at_the_networks_size(model, dataset):
    scores = evaluate_dataset(model, dataset, "val", (16, 24))
    assert scores.protocol.images == 3
    assert scores.protocol.input_size == (16, 24)
    assert scores.matrix.sum() == sum(int((s.label != 255).sum()) for s in dataset.samples)
    native = evaluate_dataset(model, dataset, "val")
    assert native.protocol.input_size is None
    assert not torch.equal(native.matrix, scores.matrix)


def with_label(batches, value):
    batches[1].label[0, 0, 0] = value
    return batches


def test_an_id_outside_the_classes_is_named_with_its_image(model, batches, classes, protocol):
    message = r"label of tiny val scene1: found id 5, expected 0 to 4 of tiny, or 255"
    with pytest.raises(InputError, match=message):
        evaluate(model, with_label(batches, 5), classes, protocol())


def test_images_without_any_labelled_pixel_give_no_score(model, batches, classes, protocol):
    for batch in batches:
        batch.label.fill_(255)
    with pytest.raises(InputError, match="tiny val: found no labelled pixel"):
        evaluate(model, batches, classes, protocol())


def test_one_unlabelled_image_among_others_counts_nothing(model, batches, classes, protocol):
    without = evaluate(model, batches[1:], classes, protocol(images=2))
    batches[0].label.fill_(255)
    assert torch.equal(evaluate(model, batches, classes, protocol()).matrix, without.matrix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 4}, "tiny val: found 3 images, expected 4 as in the protocol"),
        ({"input_size": (16, 32)}, r"image of tiny val scene0: found \(16, 24\), expected \(16, 32\)"),
        ({"num_classes": 4}, "protocol.num_classes: found 4, expected 5 as in tiny"),
        ({"models": 2}, "protocol.models: found 2, expected 1, the number given"),
        ({"scales": ()}, "views of an image: found 0 of 1 models, expected 1 to 16"),
        ({"flips": True, "scales": tuple(range(1, 10))}, "views of an image: found 18 of 1 models"),
    ],
)
def test_batches_that_break_the_protocol_are_refused(model, batches, classes, protocol, changes, message):
    with pytest.raises(InputError, match=message):
        evaluate(model, batches, classes, protocol(**changes))


def test_no_batches_or_no_label_are_refused(model, batches, classes, protocol):
    with pytest.raises(InputError, match="found 0 images"):
        evaluate(model, [], classes, protocol())
    batches[2].label = None
    with pytest.raises(InputError, match="label of tiny val scene2: found None"):
        evaluate(model, batches, classes, protocol())


def test_a_model_of_other_classes_or_without_finite_logits_is_refused(make_model, batches, classes, protocol):
    with pytest.raises(InputError, match="model output: found 7 classes, expected 5 as in tiny"):
        evaluate(make_model(7), batches, classes, protocol())
    broken = make_model()
    broken.conv.bias.data[2] = float("nan")
    with pytest.raises(InputError, match="model output: found NaN or infinite logits"):
        evaluate(broken, batches, classes, protocol())
