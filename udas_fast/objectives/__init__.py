"""Methods: what one training step optimises, one file each, and their shared parts."""

from __future__ import annotations

import importlib
import pkgutil

from udas_fast.objectives.base import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)

__all__ = [
    "Batches",
    "Losses",
    "Objective",
    "ObjectiveConfig",
    "PrepareContext",
    "Requirements",
    "StepContext",
    "objective_kinds",
]


def objective_kinds() -> dict[str, type[ObjectiveConfig]]:
    """Return every registered configuration class by kind, those of the package included."""
    from udas_fast.objectives.base import KINDS

    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return KINDS
