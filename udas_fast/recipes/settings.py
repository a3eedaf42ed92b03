"""Change single numbers of a recipe by ``KEY=VALUE``, as ``--set`` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from udas_fast.config import load_yaml
from udas_fast.errors import bad, unknown
from udas_fast.models import BACKBONES
from udas_fast.recipes.recipe import Recipe, recipe_from_dict

EVERY_STAGE = "*"
STAGES = ("stages", "translation.stages")  # lists whose items have names


class MissingPart(NamedTuple):
    """The first part of a key that is nowhere: its place, its name, and the names that are there instead."""

    place: str
    name: str
    known: frozenset[str]


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """Apply ``KEY=VALUE`` settings: ``model.width=32``, ``stages.self_training.objective.threshold=0.7``.

    Stages are named by their ``name``; ``stages.*.optimizer.lr=1e-4`` reaches every stage that has the key. The value
    is YAML.

    Another kind of network (``model.name``, or a ``model.backbone`` of another family) has its own width and output
    stride, unless these are set too.

    Raises:
        InputError: a key that the recipe does not have, or a value that does not fit.
    """
    data, keys = recipe.to_dict(), set[str]()
    for assignment in assignments:
        key, value = read_assignment(assignment)
        _assign(data, key, value)
        keys.add(key)
    if "model" not in keys and _kind(data["model"]) != _kind(asdict(recipe.model)):
        data["model"] |= {name: None for name in ("width", "output_stride") if f"model.{name}" not in keys}
    return recipe_from_dict(data, "--set")


def read_assignment(assignment: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``; raise InputError for another form, or a value that is not YAML."""
    key, equals, text = assignment.partition("=")
    if not equals:
        raise bad("--set", repr(assignment), "KEY=VALUE")
    try:
        return key, load_yaml(text)
    except ValueError as error:
        raise bad(f"--set {key}", repr(text), "a value in YAML") from error


def _kind(model: dict[str, Any]) -> tuple[object, object]:
    """Return name and family of a network; None: an unknown backbone."""
    backbone = model["backbone"]
    return model["name"], BACKBONES.get(backbone) if isinstance(backbone, str) else None


def has_key(recipe: Recipe, key: str) -> bool:
    """Return whether :func:`override` finds ``key`` in ``recipe``; ``stages.*.…``: in one of its stages."""
    return missing_part([recipe], key) is None


def missing_part(recipes: Iterable[Recipe], key: str) -> MissingPart | None:
    """Return the first part of ``key`` that none of ``recipes`` has; None where one of them has the whole key."""
    found = _look_up([recipe.to_dict() for recipe in recipes], key)
    return found if isinstance(found, MissingPart) else None


def _assign(data: dict[str, Any], key: str, value: object) -> None:
    found = _look_up([data], key)
    if isinstance(found, MissingPart):
        place, name, known = found
        if not known:
            raise bad(f"--set {key}", f"{place}, which has no keys", f"{place}=VALUE, in YAML")
        raise unknown(f"--set {key}: key of {place}", name, known)
    if key.rpartition(".")[0] in STAGES:
        raise bad(f"--set {key}", "a whole stage", "a key inside it")
    for owner in found:
        owner[key.split(".")[-1]] = value


def _look_up(data: list[dict[str, Any]], key: str) -> list[dict[str, Any]] | MissingPart:
    """Return the mappings, below any of ``data``, that hold the last part of ``key``."""
    names = key.split(".")
    nodes: list[Any] = list(data)
    for depth, name in enumerate(names):
        place = ".".join(names[:depth])
        mappings = [found for node in nodes if (found := _mapping(node, place)) is not None]
        every = place in STAGES and name == EVERY_STAGE
        owners = mappings if every else [mapping for mapping in mappings if name in mapping]
        if not owners:
            known = frozenset(key for mapping in mappings for key in mapping)
            return MissingPart(place or "recipe", name, known)
        nodes = [node for owner in owners for node in (owner.values() if every else [owner[name]])]
    return owners


def _mapping(node: Any, place: str) -> dict[str, Any] | None:
    """Return the children of ``node`` by name, None where it has no named children."""
    if place in STAGES and isinstance(node, list):
        return {stage["name"]: stage for stage in node if isinstance(stage, dict) and "name" in stage}
    return node if isinstance(node, dict) else None
