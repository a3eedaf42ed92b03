"""``run.yaml``: a run's recipe and what the run is beside it."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from udas_fast.atomic import atomic_write
from udas_fast.errors import InputError, bad
from udas_fast.recipes.recipe import Recipe, recipe_from_dict, wrong_value

Config = TypeVar("Config")


def run_document(recipe: Recipe, config: Any) -> dict[str, Any]:
    """What ``run.yaml`` holds, as plain data; ``config`` is a dataclass of plain data."""
    return {"recipe": recipe.to_dict(), "run": asdict(config)}


def changed_since(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of a :func:`run_document` was edited after a checkpoint with ``before``: ``KEY: OLD -> NEW`` each.

    ``run.yaml`` is the truth, so a run goes on with what it says now.

    Raises:
        InputError: a change that no checkpoint can be carried through: of network, stages or their length.
    """
    old, new = _flat(before), _flat(now)
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    for key in keys:
        if re.match(_FIXED, key):
            raise bad(
                f"{key} in run.yaml",
                new.get(key),
                f"{old.get(key)}, as in the checkpoint, or a new run folder",
            )
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


_FIXED = r"recipe\.(model\.(?!dropout)|stages\.\d+\.(name|steps|rounds|network|objective\.kind)$|ema$)"


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; lists of plain values are leaves."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, (list, tuple)) and node and isinstance(node[0], dict):
        children = enumerate(node)
    else:
        return {path: list(node) if isinstance(node, tuple) else node}
    return {k: v for name, child in children for k, v in _flat(child, f"{path}.{name}".lstrip(".")).items()}


def write_run_file(run: Path, recipe: Recipe, config: Any) -> None:
    """Write ``run/run.yaml``.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        atomic_write(yaml.safe_dump(run_document(recipe, config), sort_keys=False), run / "run.yaml")
    except OSError as error:
        raise InputError(f"run folder {run}: cannot be written ({error.strerror})") from error


def read_run_file(run: Path, kind: type[Config]) -> tuple[Recipe, Config]:
    """The recipe in ``run/run.yaml`` and its configuration of class ``kind``.

    Raises:
        InputError: no run there, or a damaged file.
    """
    path = run / "run.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe, config = document["recipe"], TypeAdapter(kind).validate_python(document["run"])
    except OSError as error:
        raise InputError(f"run folder {run}: no run to go on with (run.yaml: {error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise wrong_value(f"{path}: {'.'.join(map(str, ('run', *first['loc'])))}", first) from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    return recipe_from_dict(recipe, str(path)), config
