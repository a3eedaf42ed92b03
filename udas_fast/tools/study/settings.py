"""Settings of a study: the recipes that a ``--set`` reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from udas_fast.errors import bad, unknown
from udas_fast.recipes import Recipe, get_recipe


def reaching(settings: Iterable[str], recipe: Recipe) -> list[str]:
    """Return ``KEY=VALUE`` of the settings for ``recipe``: those that name it, and the others where it has the key."""
    return [
        setting
        for names, setting in map(_scope, settings)
        if recipe.name in names or (not names and _missing([recipe], _key(setting)) is None)
    ]


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
        if not names and (missing := _missing(recipes, _key(setting))) is not None:
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


def _missing(recipes: Iterable[Recipe], key: str) -> tuple[str, str, set[str]] | None:
    """Look ``key`` up as :func:`udas_fast.recipes.override` does; None where one of ``recipes`` has it.

    Otherwise return the place of the first part that none of them has, that part, and the keys that are there.
    """
    nodes: list[Any] = [recipe.to_dict() for recipe in recipes]
    parts = key.split(".")
    for depth, name in enumerate(parts):
        place = ".".join(parts[:depth])
        if place == "stages":
            nodes = [{stage["name"]: stage for stage in stages} for stages in nodes]
        nodes = [node for node in nodes if isinstance(node, dict)]
        keys = {key for node in nodes for key in node}
        if place == "stages" and name == "*":
            nodes = [stage for node in nodes for stage in node.values()]
        else:
            nodes = [node[name] for node in nodes if name in node]
        if not nodes:
            return place or "a recipe", name, keys
    return None
