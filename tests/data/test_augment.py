"""Photometric operations against Pillow's; the policy and its frequencies against the paper's table."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from udas_fast.data import augment
from udas_fast.data.augment import (
    GEOMETRIC,
    PHOTOMETRIC,
    POLICY,
    apply_each,
    apply_to_pairs,
    auto_augment,
    draw_each,
    draw_whole,
)
from udas_fast.errors import InputError

BITS = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
THRESHOLDS = [256, 228, 199, 171, 142, 114, 85, 57, 28, 0]
ORACLES = {
    "posterize": lambda image, level: ImageOps.posterize(image, BITS[level]),
    "solarize": lambda image, level: ImageOps.solarize(image, THRESHOLDS[level]),
    "invert": lambda image, level: ImageOps.invert(image),
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(0.1 + 0.2 * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(0.1 + 0.2 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(0.1 + 0.2 * level),
}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 1, 40)[:, None, None] * rng.uniform(40, 250, (1, 50, 3))
    skewed = (255 * rng.random((30, 41, 3)) ** 4).astype(np.uint8)
    return [
        smooth.astype(np.uint8),
        skewed,
        rng.integers(0, 256, (17, 23, 3), dtype=np.uint8),
        rng.integers(100, 140, (17, 23, 3), dtype=np.uint8),
        np.full((5, 6, 3), 7, np.uint8),
        np.stack([np.full((9, 9), 255), np.zeros((9, 9)), rng.integers(0, 2, (9, 9))], 2).astype(np.uint8),
        rng.integers(0, 256, (2, 9, 3), dtype=np.uint8),
        rng.integers(0, 256, (1, 1, 3), dtype=np.uint8),
    ]


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("name", ORACLES)
def test_operations_equal_pillow(name, level):
    for picture in pictures():
        wanted = np.asarray(ORACLES[name](Image.fromarray(picture), level)).astype(int)
        for image in (tensor(picture), tensor(picture).contiguous()):
            found = apply_each(image[None], [((name, level),)])[0]
            assert found.dtype == torch.uint8
            assert found.shape == image.shape
            difference = np.abs(found.permute(1, 2, 0).numpy() - wanted)
            # Blending may round differently where the compiler fuses multiply and add; the others may not.
            assert difference.max() <= (1 if name in ("color", "contrast", "sharpness") else 0)


def test_policy_is_that_of_the_paper_without_geometry():
    assert len(PHOTOMETRIC) == 25
    assert {name for sub in PHOTOMETRIC for name, _, _ in sub} <= set(ORACLES)
    # 7 of the 50 operations in the paper's table are rotations and shears.
    assert sum(map(len, PHOTOMETRIC)) == 43


def test_policy_is_the_table_of_its_docstring_without_brackets():
    lines = [line.split(None, 1) for line in augment.__doc__.splitlines() if line.strip()[:1].isdigit()]
    assert [int(number) for number, _ in lines] == list(range(1, 26))
    for (_, text), sub, whole in zip(lines, PHOTOMETRIC, POLICY, strict=True):
        published = re.findall(r"(\(?)(\w+(?: [xy])?) ([\d.]+) (\d)", text)
        assert len(published) == 2
        kept = tuple((name, float(p), int(level)) for bracket, name, p, level in published if not bracket)
        assert kept == sub
        assert whole == tuple(
            (name.replace(" ", "_"), float(p), int(level)) for _, name, p, level in published
        )


def test_operations_have_the_frequencies_of_the_policy():
    n = 20000
    found = Counter(each for one in draw_each(n, torch.Generator().manual_seed(0)) for each in one)
    expected: Counter[tuple[str, int]] = Counter()
    for sub in PHOTOMETRIC:
        for name, probability, level in sub:
            expected[name, level] += n * probability / 25
    assert set(found) <= set(expected)
    for key, count in expected.items():
        assert abs(found[key] - count) <= 4 * np.sqrt(count) + 1, key


def test_draws_are_independent():
    n = 20000
    draws = draw_each(n, torch.Generator().manual_seed(0))
    # Within a sub-policy: only colour at level 8 is followed by solarize with probability 0.8.
    coloured = [calls for calls in draws if ("color", 8) in calls]
    both = sum(("solarize", 7) in calls for calls in coloured) / len(coloured)
    assert abs(both - 0.8) < 4 * np.sqrt(0.16 / len(coloured))
    # Between neighbouring samples.
    equalized = np.array([any(name == "equalize" for name, _ in calls) for calls in draws], float)
    assert abs(np.corrcoef(equalized[1:], equalized[:-1])[0, 1]) < 4 / np.sqrt(n)


def test_samples_of_a_batch_and_calls_differ():
    picture = tensor(pictures()[0])[None].expand(40, -1, -1, -1)
    generator = torch.Generator().manual_seed(1)
    first, second = auto_augment(picture, generator), auto_augment(picture, generator)
    assert len({image.numpy().tobytes() for image in first}) > 10
    assert not torch.equal(first, second)


def test_repeats_with_the_seed_and_leaves_its_input_alone():
    images = torch.stack([tensor(pictures()[2])] * 6)
    before = images.clone()
    out = [auto_augment(images, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(out[0], out[1])
    assert torch.equal(images, before)
    assert auto_augment(images[:0], torch.Generator()).shape == (0, 3, 17, 23)
    # A fixed number of draws: the operations of an image do not depend on the images before it.
    other = images.clone()
    other[0] = 0
    assert torch.equal(auto_augment(other, torch.Generator().manual_seed(4))[1:], out[0][1:])


def test_a_pixel_never_moves():
    # One bright pixel: only sharpness changes its neighbours, by one pixel at most.
    images = torch.full((200, 3, 9, 9), 60, dtype=torch.uint8)
    images[:, :, 2, 6] = 200
    images[:, :, 7, 1] = 120
    for image in auto_augment(images, torch.Generator().manual_seed(0)).int():
        background = image[:, 4:5, 4:5]
        moved = (image != background).any(0).nonzero()
        for y, x in moved.tolist():
            assert min(max(abs(y - 2), abs(x - 6)), max(abs(y - 7), abs(x - 1))) <= 1


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4), (2, 4, 4, 3)])
def test_wrong_shape(shape):
    with pytest.raises(InputError, match=r"images: found .* expected uint8 \[N, 3, H, W\]"):
        auto_augment(torch.zeros(shape, dtype=torch.uint8), torch.Generator())
    with pytest.raises(InputError, match=r"float32"):
        auto_augment(torch.zeros(1, 3, 4, 4), torch.Generator())


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
@pytest.mark.parametrize("level", [9, -5])
def test_image_and_label_turn_together_as_pillow_turns_them(name: str, level: int) -> None:
    """Pixels whose colour is their class: nearest neighbours of Pillow's, within half a pixel of the classes' edges."""
    height, width = 48, 80
    rows, columns = np.mgrid[:height, :width]
    classes = (rows // 12 * 5 + columns // 16).astype(np.uint8)
    image = torch.from_numpy(classes)[None, None].expand(1, 3, -1, -1).contiguous()
    turned, label = apply_to_pairs(image, torch.from_numpy(classes)[None], [((name, level),)])
    if name == "rotate":
        wanted = Image.fromarray(classes).rotate(30 * level / 9, fillcolor=255)
    else:
        shear = (1, 0.3 * level / 9, 0, 0, 1, 0)
        wanted = Image.fromarray(classes).transform(
            (width, height), Image.Transform.AFFINE, shear, fillcolor=255
        )
    assert (label[0].numpy() == np.asarray(wanted)).mean() > 0.99
    assert (label == 255).any()
    # Away from the edges of the classes, which bilinear interpolation blends, colour and class stay together.
    inside = torch.nn.functional.max_pool2d(label.float(), 5, 1, 2) == -torch.nn.functional.max_pool2d(
        -label.float(), 5, 1, 2
    )
    inside[:, [0, -1]] = inside[:, :, [0, -1]] = False  # the rim is blended with what is outside
    known = inside & (label != 255)
    assert known.any()
    assert torch.equal(turned[0, 0][known[0]], label[0][known[0]])
    assert (turned[0, :, (inside & (label == 255))[0]] == 128).all()


def test_whole_autoaugment_turns_both_ways_with_the_policys_frequency() -> None:
    drawn = draw_whole(20000, torch.Generator().manual_seed(0))
    found = Counter(each for one in drawn for each in one if each[0] in GEOMETRIC)
    assert sum(found.values()) == pytest.approx(
        20000 * (0.6 + 0.8 + 0.2 + 0.8 + 0.4 + 0.8 + 0.6) / 25, rel=0.03
    )
    for (name, level), count in found.items():
        assert abs(count - found[name, -level]) < 5 * np.sqrt(count + found[name, -level])


def test_weak_views_change_colour_and_contrast_by_a_tenth() -> None:
    found = {each for one in draw_each(200, torch.Generator().manual_seed(0), "weak") for each in one}
    assert found == {("color", 4), ("color", 5), ("contrast", 4), ("contrast", 5)}
    grey = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)
    grey[..., :4] = 110
    spread = apply_each(grey, [(("contrast", 5),)]).float().std() / grey.float().std()
    assert spread == pytest.approx(1.1, abs=0.06)
    assert draw_each(2, torch.Generator(), "identity") == [(), ()]
