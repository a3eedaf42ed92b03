"""``run.yaml``: a run's recipe and what the run is beside it."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from udas_fast.atomic import atomic_write, make_folder
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.errors import InputError, bad, first_problem
from udas_fast.inference import MODEL_FILE
from udas_fast.recipes.recipe import Recipe, recipe_from_dict
from udas_fast.training.lock import locked

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
    make_folder(run)
    atomic_write(yaml.safe_dump(run_document(recipe, config), sort_keys=False), run / "run.yaml")


def require_unused(run: Path) -> None:
    """Raise InputError where folder ``run`` has a checkpoint or the model of an earlier run."""
    if CheckpointFolder(run / "checkpoints").newest() is not None or (run / MODEL_FILE).is_file():
        raise bad(f"run folder {run}", "an earlier run", "a new folder, or --resume")


def begin_run(run: Path, recipe: Recipe, config: Any) -> None:
    """:func:`write_run_file` into a folder that no other run has used, nor uses now.

    Raises:
        InputError: an earlier run, or another command that is at work there; or the folder cannot be written.
    """
    with locked(run):
        require_unused(run)
        write_run_file(run, recipe, config)


def read_run_file(run: Path, kind: type[Config]) -> tuple[Recipe, Config]:
    """The recipe in ``run/run.yaml`` and its configuration of class ``kind``, which says what it ``trains``.

    Raises:
        InputError: no run there, one that trains something else, or a damaged file; names the first wrong key.
    """
    path = run / "run.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe, config = document["recipe"], document["run"]
    except OSError as error:
        raise InputError(f"run folder {run}: no run to go on with (run.yaml: {error.strerror})") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    recipe = recipe_from_dict(recipe, str(path))
    if recipe.trains != kind.trains:
        command = {"segmentation": "train", "translation": "translate"}[recipe.trains]
        found, expected = (
            f"one of {recipe.trains}",
            f"one of {kind.trains}: `udas-fast {command} --resume` goes on",
        )
        raise bad(f"run {run}", found, f"{expected} with this one")
    try:
        return recipe, TypeAdapter(kind).validate_python(config)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, 'run')}") from error


def require_same_run(run: Path, recipe: Recipe, config: Any) -> None:
    """Raise InputError where ``run.yaml`` has become another run's since this one was set up."""
    if read_run_file(run, type(config)) != (recipe, config):
        raise bad(
            f"{run}/run.yaml", "another run than the one that was set up", "a folder of its own for each"
        )
