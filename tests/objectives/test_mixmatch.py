"""MixMatch against a float64 computation of its equations, pixel labels that are ignored, and its random numbers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast import distributed
from udas_fast.data import Batch
from udas_fast.objectives import Batches
from udas_fast.objectives.mixmatch import MixMatchConfig, own_rows, sharpen
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_resumes,
    assert_rolls_back,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    take_step,
    tiny,
)

CLASSES, SIZE = 4, (32, 48)


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": "cutmix", "temperature": 0.8, "weight": 3.0},
        {"domain": "both", "views": ("weak",), "alpha": 4.0, "rise": 0.0},
        {"domain": "source", "views": ("identity", "strong", "weak")},
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_mixmatch_is_its_equations(
    options: dict[str, Any], weighted: bool, batches: Batches, tiny_net: TinyNetwork
) -> None:
    config = MixMatchConfig(**{"rise": 0.5, **options})
    with torch.no_grad():
        tiny_net.primary.weight.mul_(5)
    objective, reference = config.build(CLASSES), copy.deepcopy(tiny_net).double()
    class_weights = torch.tensor([0.5, 1.0, 2.0, 1.5]) if weighted else torch.ones(CLASSES)
    objective.class_weights = class_weights if weighted else None
    made = objective.prepare_batch(batches, make_context(progress=0.2, seed=3))
    passes = backward_passes(objective, tiny_net, batches, make_context(progress=0.2, seed=3))

    # q: the mean of the views, the odd ones mirrored back, sharpened.
    again = make_context(progress=0.2, seed=3)
    views = [again.augment(batches.unlabelled.image, kind) for kind in config.views]
    views = [view.flip(-1) if k % 2 else view for k, view in enumerate(views)]
    with torch.no_grad():
        p = [reference(view.double() / 255)[0].softmax(1) for view in views]
    mean = sum(x.flip(-1) if k % 2 else x for k, x in enumerate(p)) / len(p)
    q = mean ** (1 / config.temperature)
    q = q / q.sum(1, keepdim=True)

    # W: all images with dense labels; 255 has none.
    names = {"labelled": ["labelled"], "source": ["source"], "both": ["source", "labelled"]}[config.domain]
    labelled = [batches.get(name) for name in names]
    image = torch.cat([*(x.image for x in labelled), *views]).double()
    hard = torch.cat([x.label for x in labelled]).long()
    dense = F.one_hot(torch.where(hard == 255, 0, hard), CLASSES).movedim(-1, 1).double()
    soft = [_up(q.flip(-1) if k % 2 else q) for k in range(len(views))]
    label = torch.cat([dense, *soft])
    valid = torch.cat([hard != 255, torch.ones(len(views) * 2, *SIZE, dtype=torch.bool)])

    assert sorted(made.partner.tolist()) == list(range(len(image)))
    seen = torch.cat(tiny_net.inputs[len(views) :]).double()
    loss_x, loss_u = [], []
    for i, j in enumerate(made.partner.tolist()):
        keep = made.keep[i].double()
        if config.mix == "mixup":
            assert 0.5 <= keep.item() <= 1
            both = valid[i] & valid[j]
        else:
            assert set(keep.unique().tolist()) <= {0.0, 1.0}
            assert keep.mean() >= 0.5
            both = torch.where(keep[0] == 1, valid[i], valid[j])
        x = (255 * seen[i]).round()  # in 256 values
        assert (x - (keep * image[i] + (1 - keep) * image[j])).abs().max() < 0.501
        y = keep * label[i] + (1 - keep) * label[j]
        (loss_x if i < len(hard) else loss_u).append((x, y, both))

    expected = []
    for first in range(0, len(loss_x), 2):
        x, y, both = (torch.stack(part) for part in zip(*loss_x[first : first + 2], strict=True))
        scores = _up(reference(x / 255)[0]).log_softmax(1)
        factor = class_weights.double()[:, None, None] * y * both[:, None]
        loss = -(factor * scores).sum() / factor.sum()
        expected.append(gradients(loss, {"model": reference}))
    weight = config.weight * (0.4 if config.rise else 1.0)
    for first in range(0, len(loss_u), 2):
        x, y, both = (torch.stack(part) for part in zip(*loss_u[first : first + 2], strict=True))
        squares = (_up(reference(x / 255)[0]).softmax(1) - y).square().sum(1)
        loss = weight / len(views) * squares[both].mean()
        expected.append(gradients(loss, {"model": reference}))
    assert_same_gradients(passes, expected)


def test_a_pixel_counts_where_both_of_its_pixels_do(batches: Batches, tiny_net: TinyNetwork) -> None:
    objective = MixMatchConfig(views=("identity",)).build(CLASSES)
    made = objective.prepare_batch(batches, make_context(seed=1))
    q = torch.full((2, CLASSES, 8, 12), 0.25)
    for partner, kept in (([0, 1, 2, 3], 0.7), ([2, 3, 0, 1], 0.7), ([2, 3, 0, 1], 1.0)):
        changed = replace(made, partner=torch.tensor(partner), keep=torch.full((4, 1, 1, 1), kept))
        labelled, unlabelled = objective._mixed(changed, q)
        counts = [torch.ones(SIZE), torch.ones(SIZE)]
        counts[0][:2] = 0
        # Labelled pixels without a label take the unlabelled ones that they are mixed with out of the loss as well.
        if kept < 1 and partner[2] < 2:
            counts[1][:2] = 0
        for found, expected in zip((labelled, unlabelled), counts, strict=True):
            torch.testing.assert_close(found.share[0] + found.other[0], expected)
            torch.testing.assert_close(found.share[0], kept * expected)


def test_a_batch_without_labels_has_no_loss_and_no_gradient(batches: Batches, tiny_net: TinyNetwork) -> None:
    empty = replace(batches.labelled, label=torch.full_like(batches.labelled.label, 255))
    losses = take_step(
        MixMatchConfig().build(CLASSES),
        tiny_net,
        Batches(labelled=empty, unlabelled=batches.unlabelled),
        make_context(),
    )
    assert losses["seg"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_net.parameters())


def test_sharpening_keeps_zeros_and_makes_the_largest_larger() -> None:
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])[None, :, None, None]
    found = sharpen(p, 0.5).flatten()
    torch.testing.assert_close(found, torch.tensor([0.25, 0.09, 0.04, 0.0]) / 0.38)
    torch.testing.assert_close(sharpen(p, 1.0), p)


def test_passes_that_label_move_no_statistics(batches: Batches, tiny_net: TinyNetwork) -> None:
    plain = copy.deepcopy(tiny_net)
    take_step(MixMatchConfig().build(CLASSES), tiny_net, batches, make_context(seed=2))
    assert len(tiny_net.inputs) == 5  # two views, the labelled images, two mixed views
    for seen in tiny_net.inputs[2:]:
        plain(seen)
    assert torch.equal(tiny_net.norm.running_mean, plain.norm.running_mean)
    assert torch.equal(tiny_net.norm.running_var, plain.norm.running_var)


def test_images_have_partners_and_shares_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    label = torch.zeros(4, 16, 16, dtype=torch.uint8)
    four = Batches(labelled=Batch(images, label, ["a"] * 4), unlabelled=Batch(images, None, ["b"] * 4))
    two = Batches(
        labelled=Batch(images[:2], label[:2], ["a"] * 2), unlabelled=Batch(images[:2], None, ["b"] * 2)
    )
    objective = MixMatchConfig().build(CLASSES)
    whole = objective.prepare_batch(four, make_context(seed=4))
    assert len(whole.keep.unique()) > 6
    # λ' ~ Beta(α, α) folded at a half: nearer to a half, the larger α is.
    sharp = MixMatchConfig(alpha=50.0).build(CLASSES).prepare_batch(four, make_context(seed=4))
    assert sharp.keep.max() < 0.75 < whole.keep.max()
    # Two processes of two images each have the numbers of one with four.
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        rows = [4 * group + 2 * rank + i for group in range(3) for i in range(2)]
        assert own_rows([2, 2, 2]).tolist() == rows
        half = objective.prepare_batch(two, make_context(seed=4))
        assert torch.equal(half.partner, whole.partner[rows])
        assert torch.equal(half.keep, whole.keep[rows])


@pytest.mark.slow
@pytest.mark.parametrize("options", [["domain=labelled"], ["domain=both", "mix=cutmix"]])
def test_the_recipe_resumes_and_skips_steps(options: list[str]) -> None:
    recipe = override(tiny(get_recipe("mixmatch")), [f"stages.*.objective.{option}" for option in options])
    assert_resumes(recipe)
    assert_rolls_back(recipe)
