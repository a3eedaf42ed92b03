"""What a run of the trainer is beside its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from udas_fast.data.domains import DataConfig
from udas_fast.data.loader import Engine
from udas_fast.errors import InputError, bad
from udas_fast.objectives import STRICT


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What a run is beside its recipe; ``run.yaml`` holds both."""

    trains: ClassVar[str] = "segmentation"

    data: DataConfig | None = None  # None: the datasets were given as objects
    given: tuple[Literal["model", "optimizer"], ...] = ()  # these too
    engine: Engine = "torch"  # what "auto" came to
    weights: str | None = None  # ResNet or DeepLab checkpoint to start from
    start: str | None = None  # run, or model.safetensors, whose model the first stage starts from
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)  # steps between two reads of the losses
    checkpoint_every: int = Field(default=500, ge=1)
    max_bad_steps: int = Field(default=0, ge=0)  # left out as losses or gradients were not finite


def require_objects(run: Path, config: RunConfig, **objects: object) -> None:
    """Raise InputError unless those parts are given that were objects when the run began, and no others."""
    began = {*config.given, *(("data",) if config.data is None else ())}
    missing = sorted(name for name in began if objects[name] is None)
    if missing:
        names = " and ".join(missing)
        raise InputError(f"run {run}: its {names} began as objects; give them to Trainer.resume again")
    for name in ("model", "optimizer"):
        if objects[name] is not None and name not in began:
            raise bad(f"run {run}", f"a {name} to go on with", "none, as it began with the recipe's own")
