"""Checks for methods, the package's own and a user's: steps on random batches against an independent computation."""

from udas_fast.testing.steps import (
    Gradients,
    TinyNetwork,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    named_parameters,
    random_batches,
    take_step,
)

__all__ = [
    "Gradients",
    "TinyNetwork",
    "assert_same_gradients",
    "backward_passes",
    "gradients",
    "make_context",
    "named_parameters",
    "random_batches",
    "take_step",
]
