"""Which objectives, in which stages, with which numbers; one file a method, found by :func:`all_recipes`."""

from __future__ import annotations

import importlib
import pkgutil

from udas_fast.errors import unknown
from udas_fast.recipes.changes import Changes, with_batch_size, with_lr, with_size, with_steps
from udas_fast.recipes.recipe import (
    InputConfig,
    Phase,
    Recipe,
    Stage,
    StreamBatchSize,
    load_recipe,
    recipe_from_dict,
    select_stages,
)
from udas_fast.recipes.settings import has_key, override
from udas_fast.recipes.small import small

__all__ = [
    "Changes",
    "InputConfig",
    "Phase",
    "Recipe",
    "Stage",
    "StreamBatchSize",
    "all_recipes",
    "get_recipe",
    "has_key",
    "list_recipes",
    "load_recipe",
    "override",
    "recipe_from_dict",
    "select_stages",
    "small",
    "with_batch_size",
    "with_lr",
    "with_size",
    "with_steps",
]


def all_recipes() -> dict[str, Recipe]:
    """Every recipe of the package by name: a new file in this folder is all that a new recipe needs.

    Raises:
        ValueError: two recipes have one name.
    """
    found: dict[str, Recipe] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Recipe) and found.setdefault(value.name, value) is not value:
                raise ValueError(f"{module.name}.py: another recipe has the name {value.name!r}")
    return found


def get_recipe(name: str) -> Recipe:
    """The recipe ``name``.

    Raises:
        InputError: there is none, with the nearest name.
    """
    known = all_recipes()
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]


def list_recipes() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(all_recipes())
