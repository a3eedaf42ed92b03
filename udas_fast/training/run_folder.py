"""The folder of a run: ``run.yaml``, a recipe and the run's own settings, and the lock of who works there."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, Protocol, TypeVar

import yaml
from pydantic import Field

from udas_fast.atomic import atomic_write, make_folder, writing
from udas_fast.config import config_dataclass, from_dict, load_yaml
from udas_fast.data.domains import DataConfig
from udas_fast.data.loader import Engine
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.errors import InputError, bad
from udas_fast.inference import MODEL_FILE
from udas_fast.models import OwnNetwork
from udas_fast.recipes import Recipe, methods, recipe_from_dict


class RunSettings(Protocol):
    """Settings of any run beside its recipe, as the loop over steps reads them."""

    trains: ClassVar[str]

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between two reads of the losses."""
        ...

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""
        ...

    @property
    def max_bad_steps(self) -> int:
        """Steps that may be skipped because a loss or gradient is not finite."""
        ...


@config_dataclass
class RunConfig:
    """Settings of a training run beside its recipe; ``run.yaml`` holds both."""

    trains: ClassVar[str] = "segmentation"

    data: DataConfig | None = None  # None: the datasets were given as objects
    labelled: tuple[str, ...] | None = None  # ids of the labelled images that were chosen of ``data``
    class_weights: tuple[float, ...] | None = None  # the recipe's, counted where they are "balanced"
    network: OwnNetwork | None = (
        None  # function that built a network of the user's own; never imported from here
    )
    given: tuple[Literal["model", "optimizer"], ...] = ()  # given as objects too
    engine: Engine = "torch"  # the choice of "auto"
    weights: str | None = None  # checkpoint of a network to start from
    reset_head: bool = False  # leave out the head of ``weights``, which is of other classes
    start: str | None = None  # run, or model.safetensors, whose model the first stage starts from
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)  # steps between two reads of the losses
    checkpoint_every: int = Field(default=500, ge=1)
    max_bad_steps: int = Field(default=0, ge=0)  # skipped steps with losses or gradients that are not finite
    evaluate_every: int | None = Field(
        default=None, ge=1
    )  # steps between two scores; None: after each round only
    keep_best: bool = False  # keep the network of the highest of these scores too

    def __post_init__(self) -> None:
        if self.keep_best and self.evaluate_every is None:
            raise bad("keep_best", "no evaluate_every", "the steps between two scores (--evaluate-every N)")


Settings = TypeVar("Settings", bound=RunSettings)


def run_document(recipe: Recipe, settings: RunSettings) -> dict[str, Any]:
    """Return the content of ``run.yaml`` as plain data."""
    origins = methods.origins(recipe)
    document: dict[str, Any] = {"methods": origins} if origins else {}
    return document | {"recipe": recipe.to_dict(), "run": asdict(settings)}  # type: ignore[call-overload]  # a dataclass


def changed_since(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return edits of a :func:`run_document` after a checkpoint with ``before``, each as ``KEY: OLD -> NEW``.

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
    """Return the leaves by dotted path; lists of plain values are leaves."""
    children: Any
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, (list, tuple)) and node and isinstance(node[0], dict):
        children = enumerate(node)
    else:
        return {path: list(node) if isinstance(node, tuple) else node}
    return {k: v for name, child in children for k, v in _flat(child, f"{path}.{name}".lstrip(".")).items()}


def write_run_file(run_dir: Path, recipe: Recipe, settings: RunSettings) -> None:
    """Write ``run.yaml``.

    Raises:
        InputError: the folder cannot be written.
    """
    make_folder(run_dir)
    atomic_write(yaml.safe_dump(run_document(recipe, settings), sort_keys=False), run_dir / "run.yaml")


def require_unused(run_dir: Path) -> None:
    """Raise InputError where ``run_dir`` has a checkpoint or the model of an earlier run."""
    if CheckpointFolder(run_dir / "checkpoints").newest() is not None or (run_dir / MODEL_FILE).is_file():
        raise bad(f"run folder {run_dir}", "an earlier run", "a new folder, or --resume")


def begin_run(run_dir: Path, recipe: Recipe, settings: RunSettings) -> None:
    """Write ``run.yaml`` into a folder that no other run has used, nor uses now.

    Raises:
        InputError: an earlier run, or another command that is at work there; or the folder cannot be written.
    """
    with locked(run_dir):
        require_unused(run_dir)
        write_run_file(run_dir, recipe, settings)


def read_run_file(run_dir: Path, kind: type[Settings]) -> tuple[Recipe, Settings]:
    """Return the recipe in ``run.yaml`` and its settings of class ``kind``.

    Methods of the user's own are imported as the file says.

    Raises:
        InputError: no run there, one that trains something else, a method that cannot be imported, or a damaged file;
            names the first wrong key.
    """
    path = run_dir / "run.yaml"
    try:
        document = load_yaml(path.read_text(encoding="utf-8"))
        recipe_data, settings = document["recipe"], document["run"]
        origins = document.get("methods", [])
    except OSError as error:
        raise InputError(
            f"run folder {run_dir}: no run to go on with (run.yaml: {error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    methods.import_origins(origins, str(path), _kinds(recipe_data))
    recipe = recipe_from_dict(recipe_data, str(path))
    if recipe.trains != kind.trains:
        command = {"segmentation": "train", "translation": "translate"}[recipe.trains]
        raise bad(
            f"run {run_dir}",
            f"one of {recipe.trains}",
            f"one of {kind.trains}: `udas-fast {command} --resume` goes on with this one",
        )
    return recipe, from_dict(kind, settings, f"{path}: run")


def _kinds(recipe: Any) -> list[str]:
    """Return the kinds of objectives in a recipe's plain data, as far as it has any."""
    try:
        return [str(stage["objective"]["kind"]) for stage in recipe["stages"]]
    except (TypeError, KeyError):
        return []  # recipe_from_dict says what is wrong


@contextmanager
def opening_data(run_dir: Path) -> Iterator[None]:
    """Add to an InputError where a run's datasets are named, and the working folder that relative ones are of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} ({run_dir / 'run.yaml'}; working folder {Path.cwd()})") from error


def require_same_run(run_dir: Path, recipe: Recipe, settings: RunSettings) -> None:
    """Raise InputError where ``run.yaml`` has become another run's since this one was set up."""
    if read_run_file(run_dir, type(settings)) != (recipe, settings):
        raise bad(
            f"{run_dir}/run.yaml",
            "another run than the one that was set up",
            "a folder of its own for each",
        )


def require_objects(run_dir: Path, run_config: RunConfig, **objects: object) -> None:
    """Raise InputError unless those parts are given that were objects when the run began, and no others."""
    began = {*run_config.given, *(("data",) if run_config.data is None else ())}
    missing = sorted(name for name in began if objects[name] is None)
    if run_config.network is not None and "model" in missing:
        found = f"no network to go on with, which began as {run_config.network}"
        raise bad(
            f"run {run_dir}", found, f"--network {run_config.network.function} (Trainer.resume: model=)"
        )
    if missing:
        names = " and ".join(missing)
        raise InputError(f"run {run_dir}: its {names} began as objects; give them to Trainer.resume again")
    for name in ("model", "optimizer"):
        if objects[name] is not None and name not in began:
            raise bad(f"run {run_dir}", f"a {name} to go on with", "none, as it began with the recipe's own")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock file of a run folder, which is freed when the process ends, however it ends.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    path = run_dir / "lock"
    make_folder(run_dir)
    with writing(path):
        file = path.open("ab")
    with file:
        lock(file, run_dir)
        yield


def lock(file: BinaryIO, run_dir: Path) -> None:
    """Lock ``file`` in a run folder for as long as it is open here or in a process that inherited it.

    Raises:
        InputError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise bad(
            f"run folder {run_dir}", "a process that trains there", "to wait for it or to stop it"
        ) from None
    except OSError:  # a network file system that has no locks
        pass
