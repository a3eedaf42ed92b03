"""Checks for methods, the package's own and a user's: steps on random batches against an independent computation."""

from udas_fast.testing.phases import (
    RandomLoader,
    RandomPhase,
    assert_equal,
    assert_replays,
    assert_resumes,
    random_phase,
    tiny,
)
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
from udas_fast.testing.tape import TapeCapture

__all__ = [
    "Gradients",
    "RandomLoader",
    "RandomPhase",
    "TapeCapture",
    "TinyNetwork",
    "assert_equal",
    "assert_replays",
    "assert_resumes",
    "assert_same_gradients",
    "backward_passes",
    "gradients",
    "make_context",
    "named_parameters",
    "random_batches",
    "random_phase",
    "take_step",
    "tiny",
]
