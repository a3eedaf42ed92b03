"""How often the preparation of a batch goes over its images: a bound on operations, whatever was drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udas_fast.data.augment import POLICY, Operations, apply_each, apply_to_pairs
from udas_fast.data.photometric import TABLES
from udas_fast.data.strong_view import StrongConfig, apply_strong, draw_strong
from udas_fast.models import NetworkInput

SIZE = (24, 32)


class Passes(TorchDispatchMode):
    """Counts operations that read or write at least ``pixels`` values, and the storages of that many that they make."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels, self.operations, self.made = pixels, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = (
            [t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), result)
        )
        there = {t.untyped_storage().data_ptr() for t in inputs}
        new = [t for t in outputs if t.untyped_storage().data_ptr() not in there]
        is_view = not new and not func._schema.is_mutable
        self.operations += not is_view and any(t.numel() >= self.pixels for t in (*inputs, *outputs))
        self.made += sum(t.numel() >= self.pixels for t in new)
        return result


def _counted(function: Callable[[Tensor], object], n: int) -> tuple[int, int]:
    """Return (operations, storages) of ``function`` of ``n`` images, of at least the size of all of these."""
    images = torch.randint(0, 256, (n, 3, *SIZE), dtype=torch.uint8)
    with Passes(images.numel()) as passes:
        function(images)
    return passes.operations, passes.made


def test_normalisation_is_one_operation() -> None:
    for form in (NetworkInput(), NetworkInput(dtype=torch.bfloat16, channels_last=True)):
        assert _counted(form.normalize, 2) == (1, 1)


def test_a_mix_is_normalised_in_its_one_operation() -> None:
    label = torch.zeros(2, *SIZE, dtype=torch.uint8)
    boxes = torch.tensor([[2, 1, 9, 7], [0, 0, 3, 3]], dtype=torch.int32)
    form = NetworkInput(channels_last=True)
    assert _counted(lambda image: form.mix(image, image, label, label, boxes), 2) == (1, 1)


@pytest.mark.parametrize("n", [1, 6])
def test_operations_of_one_value_take_one_count_and_one_look_up_of_the_whole_batch(n: int) -> None:
    """Index, histogram, look-up: however many images there are and however many operations follow one another."""
    fixed: Operations = (("posterize", 8), ("invert", 4), ("solarize", 5))
    counted: Operations = (("equalize", 8), ("solarize", 3), ("autocontrast", 5), ("equalize", 3))
    assert _counted(lambda images: apply_each(images, [fixed] * n), n) == (2, 2)
    assert _counted(lambda images: apply_each(images, [counted] * n), n) == (3, 2)
    assert _counted(lambda images: apply_each(images, [counted, *[()] * (n - 1)]), n) == (3, 2)


def test_every_sub_policy_stays_below_a_bound() -> None:
    """The four sub-policies of colour, sharpness and contrast and the seven that turn have filters of their own."""
    label = torch.zeros(1, *SIZE, dtype=torch.uint8)
    for pair in POLICY:
        operations = tuple((name, level) for name, _, level in pair)
        found, made = _counted(lambda images, each=operations: apply_to_pairs(images, label, [each]), 1)
        limit = 3 if all(name in TABLES for name, _ in operations) else 16
        assert found <= limit, operations
        assert made <= limit, operations


def test_a_strong_view_is_made_in_nine_operations() -> None:
    drawn = draw_strong(2, StrongConfig(), torch.Generator().manual_seed(0))
    # Floats, mean luma, colours, clipping, border, two directions of the blur, rounding, bytes.
    assert _counted(lambda images: apply_strong(images, drawn), 2)[0] == 9
