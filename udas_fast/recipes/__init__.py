"""Recipes: which objectives, in which stages, with which numbers; one file a method."""

from __future__ import annotations

import importlib
import pkgutil

from udas_fast.data.inputs import InputConfig, StreamBatchSize
from udas_fast.errors import InputError, bad, unknown
from udas_fast.recipes.changes import Changes, with_batch_size, with_lr, with_size, with_steps
from udas_fast.recipes.methods import load_method_file, user_recipes
from udas_fast.recipes.recipe import (
    Phase,
    Recipe,
    Stage,
    load_recipe,
    recipe_from_dict,
    select_stages,
)
from udas_fast.recipes.settings import has_key, override
from udas_fast.recipes.small_recipes import small
from udas_fast.recipes.translation import with_translation

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
    "load_method_file",
    "load_recipe",
    "override",
    "recipe_from_dict",
    "select_stages",
    "small",
    "with_batch_size",
    "with_lr",
    "with_size",
    "with_steps",
    "with_translation",
]


def all_recipes() -> dict[str, Recipe]:
    """Return every recipe by name: the package's, those of method files and of installed packages.

    Raises:
        InputError: two recipes have one name.
    """
    found: dict[str, Recipe] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Recipe) and found.setdefault(value.name, value) is not value:
                raise bad(
                    f"recipe {value.name!r} in {module.name}.py", "another recipe's name", "one of its own"
                )
    for name, recipe in user_recipes()[0].items():
        if found.setdefault(name, recipe) is not recipe:  # a file may import the package's own
            raise bad(f"recipe {name!r} of your own", "the name of a recipe of udas_fast", "another name")
    return found


def get_recipe(name: str) -> Recipe:
    """Return the recipe ``name``.

    Raises:
        InputError: there is none, with the nearest name.
    """
    known = all_recipes()
    if name not in known:
        error = unknown("recipe", name, known)
        failures = "".join(f"; {failure}" for failure in user_recipes()[1].values())
        raise InputError(f"{error}{failures}")
    return known[name]


def list_recipes() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(all_recipes())
