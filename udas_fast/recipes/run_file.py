"""``run.yaml``: a run's recipe and what the run is beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from udas_fast.engine.checkpoint import atomic_write
from udas_fast.errors import InputError
from udas_fast.recipes.recipe import Recipe, recipe_from_dict

Config = TypeVar("Config")


def write_run_file(run: Path, recipe: Recipe, config: Any) -> None:
    """Write ``run/run.yaml``; ``config`` is a dataclass of plain data.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        document = {"recipe": recipe.to_dict(), "run": asdict(config)}
        atomic_write(yaml.safe_dump(document, sort_keys=False), run / "run.yaml")
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
        config = TypeAdapter(kind).validate_python(document["run"])
    except OSError as error:
        raise InputError(f"run folder {run}: no run to go on with (run.yaml: {error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    return recipe_from_dict(document["recipe"], str(path)), config
