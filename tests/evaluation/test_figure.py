"""Figures: right colours, every panel drawn, wrong input refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from udas_fast.errors import InputError
from udas_fast.evaluation import colorize, comparison_figure, validation_figure
from udas_fast.evaluation.figure import DPI, IGNORED_COLOUR, PANEL


def test_colours_are_the_palettes_and_grey(classes):
    label = np.array([[0, 4, 255], [2, 1, 3]], np.uint8)
    expected = [[classes.palette[i] if i < 5 else IGNORED_COLOUR for i in row] for row in label]
    for given in (label, torch.from_numpy(label)):
        np.testing.assert_array_equal(colorize(given, classes), np.array(expected, np.uint8))
    assert colorize(label[None], classes).shape == (1, 2, 3, 3)
    with pytest.raises(InputError, match="label: found id 5, expected 0 to 4 of tiny, or 255"):
        colorize(label + 3 * (label == 2), classes)


def pixels_of(path, colour) -> int:
    picture = np.asarray(Image.open(path).convert("RGB"))
    return int((picture == colour).all(-1).sum())


def arrays(n: int | None, h: int = 20, w: int = 40) -> dict:
    """Save a figure with one colour a panel: prediction road, ground truth car, kept labels ignored."""
    shape = (h, w) if n is None else (n, h, w)
    return {
        "image": np.full((*shape, 3), 17, np.uint8),
        "label": np.full(shape, 2, np.uint8),
        "predictions": {"a": np.full(shape, 1, np.uint8), "b": np.full(shape, 3, np.uint8)},
        "confidence": np.full(shape, 1.0, np.float32),
        "pseudo_label": np.full(shape, 255, np.uint8),
    }


@pytest.mark.parametrize("n", [None, 3])
def test_each_panel_is_drawn_in_full(tmp_path, classes, n):
    path = tmp_path / "figure.png"
    comparison_figure(**arrays(n), classes=classes, path=path)
    panel = (n or 1) * (PANEL * DPI) ** 2 / 2
    viridis_top = (253, 231, 36)
    colours = [(17, 17, 17), *(classes.palette[i] for i in (2, 1, 3)), viridis_top, IGNORED_COLOUR]
    for colour in colours:
        assert pixels_of(path, colour) == pytest.approx(panel, rel=0.05)
    assert pixels_of(path, classes.palette[4]) > 50  # the key has every class, present or not


def test_tensors_are_drawn_as_arrays(tmp_path, classes):
    given = arrays(None)
    tensors = {k: torch.from_numpy(v) for k, v in given.items() if k != "predictions"}
    predictions = {k: torch.from_numpy(v) for k, v in given["predictions"].items()}
    comparison_figure(**given, classes=classes, path=tmp_path / "a.png")
    comparison_figure(**tensors, predictions=predictions, classes=classes, path=tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name", ["label", "confidence", "pseudo_label"])
def test_maps_of_another_size_are_refused(tmp_path, classes, name):
    given = arrays(None)
    given[name] = given[name][:-1]
    with pytest.raises(InputError, match=r"found \[19, 40\], expected \[20, 40\], the image's"):
        comparison_figure(**given, classes=classes, path=tmp_path / "figure.png")


def test_figure_of_a_validation_set(tmp_path, model, dataset):
    path = tmp_path / "figure.png"
    validation_figure({"student": model}, model, dataset, (16, 24), path, examples=2, threshold=0.0)
    all_kept = pixels_of(path, IGNORED_COLOUR)
    validation_figure({"student": model}, model, dataset, (16, 24), path, examples=2, threshold=1.1)
    none_kept = pixels_of(path, IGNORED_COLOUR)
    assert none_kept - all_kept == pytest.approx(2 * PANEL * DPI * PANEL * DPI * 16 / 24, rel=0.05)


def test_a_set_that_cannot_be_drawn_is_refused(tmp_path, model, dataset):
    dataset.samples[0].label = None
    with pytest.raises(InputError, match="tiny scene0: found no label"):
        validation_figure({"m": model}, model, dataset, (16, 24), tmp_path / "f.png")
    dataset.samples.clear()
    with pytest.raises(InputError, match="tiny: found no images"):
        validation_figure({"m": model}, model, dataset, (16, 24), tmp_path / "f.png")
