"""One step of an objective, as the loop takes it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.objectives import Objective, Step


def take_step(
    objective: Objective, model: nn.Module, batches: Mapping[str, Batch], step: Step
) -> dict[str, Tensor]:
    """The losses of :meth:`Objective.learn` from :meth:`Objective.inputs`."""
    return objective.learn(model, objective.inputs(batches, step), step)
