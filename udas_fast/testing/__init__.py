"""Checks for methods, the package's own and a user's; :func:`check_method` runs them all.

A step's numbers are compared with an independent computation by :func:`backward_passes`, with :class:`TinyNetwork`,
:func:`random_batches` and :func:`make_context`.
"""

from udas_fast.testing.checks import (
    assert_equal,
    assert_reads_its_yaml,
    assert_replays,
    assert_resumes,
    assert_rolls_back,
)
from udas_fast.testing.method import check_method
from udas_fast.testing.phases import RandomLoader, RandomPhase, random_phase, tiny
from udas_fast.testing.processes import assert_processes_agree
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
from udas_fast.testing.watch import assert_no_host_sync, assert_seeded

__all__ = [
    "Gradients",
    "RandomLoader",
    "RandomPhase",
    "TapeCapture",
    "TinyNetwork",
    "assert_equal",
    "assert_no_host_sync",
    "assert_processes_agree",
    "assert_reads_its_yaml",
    "assert_replays",
    "assert_resumes",
    "assert_rolls_back",
    "assert_same_gradients",
    "assert_seeded",
    "backward_passes",
    "check_method",
    "gradients",
    "make_context",
    "named_parameters",
    "random_batches",
    "random_phase",
    "take_step",
    "tiny",
]
