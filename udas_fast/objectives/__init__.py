"""What one step optimises; one file a method, found by :func:`objective_configs`."""

from __future__ import annotations

import importlib
import pkgutil

from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Round, Step

__all__ = ["STRICT", "Learning", "Objective", "ObjectiveConfig", "Round", "Step", "objective_configs"]


def objective_configs() -> tuple[type[ObjectiveConfig], ...]:
    """Every objective's configuration class: a new file in this folder is all that a new method needs."""
    found: dict[type[ObjectiveConfig], None] = {}  # a set in order: files import each other's
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, ObjectiveConfig):
                found[value] = None
    del found[ObjectiveConfig]
    return tuple(found)
