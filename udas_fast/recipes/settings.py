"""Change single numbers of a recipe by ``KEY=VALUE``, as ``--set`` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from udas_fast.errors import InputError, bad, unknown
from udas_fast.recipes.recipe import Recipe, recipe_from_dict

EVERY_STAGE = "*"


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """Apply ``KEY=VALUE`` settings: ``model.width=32``, ``stages.self_training.objective.threshold=0.7``.

    Stages are named by their ``name``; ``stages.*.optimizer.lr=1e-4`` reaches every stage that has the key. The value
    is YAML.

    Raises:
        InputError: a key that the recipe does not have, or a value that does not fit.
    """
    data = recipe.to_dict()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise bad("--set", repr(assignment), "KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise bad(f"--set {key}", repr(text), "a value in YAML") from error
        for owner, name in _find(data, key):
            owner[name] = value
    return recipe_from_dict(data, "--set")


def has_key(recipe: Recipe, key: str) -> bool:
    """Return whether :func:`override` finds ``key`` in ``recipe``, in any stage where it is ``stages.*.…``."""
    try:
        return bool(_find(recipe.to_dict(), key))
    except InputError:
        return False


def _find(data: dict[str, Any], key: str) -> list[tuple[dict[str, Any], str]]:
    """Return (mapping, its key) for each place that ``key`` names.

    Raises:
        InputError: there is none, with the nearest valid key.
    """
    names = key.split(".")
    nodes: list[Any] = [data]
    for depth, name in enumerate(names):
        at = ".".join(names[:depth]) or "recipe"
        mappings = [found for node in nodes if (found := _mapping(node, at)) is not None]
        if not mappings:
            raise bad(f"--set {key}", f"{at}, which has no keys", f"{at}=VALUE, in YAML")
        if at == "stages" and name == EVERY_STAGE:
            nodes = list(mappings[0].values())
        else:
            mappings = _with_name(mappings, name, f"--set {key}: key of {at}")
            nodes = [mapping[name] for mapping in mappings]
        if at == "stages" and depth == len(names) - 1:
            raise bad(f"--set {key}", "a whole stage", "a key inside it")
    return [(mapping, names[-1]) for mapping in mappings]


def _mapping(node: Any, at: str) -> dict[str, Any] | None:
    """Return the children of ``node`` by name, None where it has no named children."""
    if at == "stages" and isinstance(node, list):
        return {stage["name"]: stage for stage in node if isinstance(stage, dict) and "name" in stage}
    return node if isinstance(node, dict) else None


def _with_name(mappings: Sequence[dict[str, Any]], name: str, thing: str) -> list[dict[str, Any]]:
    """Return those of ``mappings`` that have ``name``; raise InputError where none has."""
    found = [mapping for mapping in mappings if name in mapping]
    if not found:
        raise unknown(thing, name, {key for mapping in mappings for key in mapping})
    return found
