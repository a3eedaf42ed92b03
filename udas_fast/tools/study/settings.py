"""Settings of a study: the recipes that a ``--set`` reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from udas_fast.errors import bad, unknown
from udas_fast.recipes import Recipe, get_recipe, has_key
from udas_fast.recipes.settings import missing_part


def reaching(settings: Iterable[str], recipe: Recipe) -> list[str]:
    """Return ``KEY=VALUE`` of the settings for ``recipe``: those that name it, and the others where it has the key."""
    return [
        setting
        for names, setting in map(_scope, settings)
        if recipe.name in names or (not names and has_key(recipe, _key(setting)))
    ]


def naming(settings: Iterable[str], recipe: str) -> list[str]:
    """Return ``KEY=VALUE`` of the settings that name ``recipe``."""
    return [setting for names, setting in map(_scope, settings) if recipe in names]


def check_settings(study: str, settings: Iterable[str], recipes: Sequence[Recipe]) -> None:
    """Check that every setting reaches a recipe of the study.

    Raises:
        InputError: a recipe that is unknown or not in the study, or a key that none of ``recipes`` has.
    """
    known = {recipe.name for recipe in recipes}
    for names, setting in map(_scope, settings):
        for name in names:
            if name not in known:
                get_recipe(name)
        if names and not known & set(names):
            raise unknown(f"--set {setting}: recipe of the {study} study", names[0], known)
        if not names and (missing := missing_part(recipes, _key(setting))) is not None:
            place, name, keys = missing
            if not keys:
                raise bad(
                    f"--set {setting}", f"{place}, which has no keys", f"a key of the {study} study's recipes"
                )
            raise unknown(f"--set {setting}: key of {place} in the {study} study", name, keys)


def _scope(setting: str) -> tuple[list[str], str]:
    """Split ``RECIPE[,RECIPE]:KEY=VALUE`` into recipes and ``KEY=VALUE``; no recipes where none are named."""
    names, colon, _ = _key(setting).partition(":")
    return (names.split(","), setting[len(names) + 1 :]) if colon else ([], setting)


def _key(setting: str) -> str:
    return setting.partition("=")[0]
