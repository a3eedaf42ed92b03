"""What a :class:`udas_fast.Trainer` runs: networks set up, phases one after the other, and what they come to."""

from udas_fast.training.networks import Networks
from udas_fast.training.phases import Phases
from udas_fast.training.results import Results

__all__ = ["Networks", "Phases", "Results"]
