"""The tracker against sums by hand, on real tensors."""

from __future__ import annotations

import torch
from torch import nn

from udas_fast.memory.tracker import BLOCK, MemoryTracker

KIB = 1024


def test_storages_count_once_and_until_they_are_freed() -> None:
    with MemoryTracker() as tracker:
        a = torch.zeros(KIB)  # float32: 4 KiB
        b = a.view(32, 32).t()  # a view of the same
        assert tracker.live == 4 * KIB
        c = a + 1
        assert tracker.live == 8 * KIB
        del a
        assert tracker.live == 8 * KIB  # b still holds it
        del b, c
        assert tracker.live == 0
        assert tracker.peak == 8 * KIB


def test_sizes_are_rounded_up_to_blocks() -> None:
    with MemoryTracker() as tracker:
        kept = [torch.zeros(1), torch.zeros(128), torch.zeros(129)]
        assert tracker.live == (1 + 1 + 2) * BLOCK
        assert len(kept) == 3


def test_the_peak_of_a_forward_and_backward_by_hand() -> None:
    x = torch.ones(KIB, requires_grad=True)  # before the tracker: not counted
    with MemoryTracker() as tracker:
        loss = x.exp().exp().sum()  # two results that autograd keeps, and the sum
        assert tracker.live == 2 * 4 * KIB + BLOCK
        loss.backward()
        # The ones that the backward starts with, and one gradient; each exp's backward then makes the next one.
        assert tracker.peak == 2 * 4 * KIB + 2 * BLOCK + 2 * 4 * KIB - 4 * KIB
        del loss
        assert tracker.live == 4 * KIB  # x.grad


def test_kinds() -> None:
    layer, image = nn.Linear(256, 1, bias=False), torch.ones(128, 256)
    with MemoryTracker() as tracker:
        tracker.hold("weights", layer.parameters())
        with tracker.making("activations"):
            y = layer(image)
        tracker.hold("inputs", [y])
        z = y * 2
        assert tracker.peak_by_kind == {"weights": KIB, "activations": 0, "inputs": BLOCK, "temporary": BLOCK}
        assert z.shape == (128, 1)
        tracker.reset_peak()
        assert tracker.peak == KIB + 2 * BLOCK
