"""Labels and confidence of one image against their definition and against evaluation."""

import numpy as np
import pixel_oracle as oracle
import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.evaluation import evaluate_dataset, predict
from udas_fast.models import normalize


@pytest.mark.parametrize(("out_size", "expected"), [(None, (16, 24)), ((31, 40), (31, 40))])
@pytest.mark.parametrize("align_corners", [False, True])
def test_label_and_confidence_are_arg_max_and_softmax_of_the_upsampled_logits(
    model, out_size, expected, align_corners
):
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.align_corners = align_corners
    label, confidence = predict(model, image, (16, 24), out_size)
    assert (label.dtype, confidence.dtype) == (torch.uint8, torch.float32)
    assert label.shape == confidence.shape == expected
    with torch.no_grad():
        logits = model.eval()(normalize(image[None])).primary[0].double().numpy()
    full = oracle.upsample(logits, expected, align_corners)
    probability = np.exp(full) / np.exp(full).sum(0)
    np.testing.assert_array_equal(label.numpy(), full.argmax(0))
    np.testing.assert_allclose(confidence.numpy(), probability.max(0), rtol=1e-5)


def test_predictions_equal_those_of_evaluation(model, dataset):
    matrix = np.zeros((5, 5), np.int64)
    for sample in dataset.samples:
        label, _ = predict(model, torch.from_numpy(sample.image).permute(2, 0, 1), (16, 24))
        matrix += oracle.confusion(label.numpy(), sample.label, 5)
    scores = evaluate_dataset(model, dataset, "val", (16, 24))
    np.testing.assert_array_equal(matrix, scores.matrix.numpy())


def test_the_models_mode_is_restored_and_the_result_can_be_trained_on(model):
    model.train()
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    label, confidence = predict(model, image, (16, 24))
    assert model.training
    assert not confidence.requires_grad
    logits = model(normalize(image[None]).repeat(2, 1, 1, 1)).primary
    full = torch.nn.functional.interpolate(logits, label.shape, mode="bilinear")
    torch.nn.functional.cross_entropy(full, label.long()[None].repeat(2, 1, 1)).backward()


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).byte(), torch.zeros(8, 8, 3).byte()]
)
def test_other_images_are_refused(model, image):
    with pytest.raises(InputError, match=r"image: found torch.*expected torch.uint8 \[3, H, W\]"):
        predict(model, image, (16, 24))
