"""The trainer: runs a recipe on a model and two domains, into a run folder that can be continued."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import evaluation
from udas_fast.data import BadFile, ClassSet, Faults
from udas_fast.data.loader import Engine
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.precision import build_amp, memory_format, resolve_device
from udas_fast.engine.recorder import Recorder
from udas_fast.engine.seeding import seed_step
from udas_fast.errors import InputError, bad
from udas_fast.inference import TrainedModel
from udas_fast.models import build_model, load_weights, set_checkpointing
from udas_fast.objectives import STRICT
from udas_fast.recipes import Recipe, Stage, recipe_from_dict
from udas_fast.recipes.domains import DataConfig, Domains


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What a run is beside its recipe; ``run.yaml`` holds both."""

    data: DataConfig | None = None  # None: the datasets were given as objects
    engine: Engine = "torch"  # what "auto" came to
    weights: str | None = None  # ResNet or DeepLab checkpoint to start from
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)  # steps between two reads of the losses
    checkpoint_every: int = Field(default=500, ge=1)


class Trainer:
    """Trains ``model`` by ``recipe`` on ``data``.

    Args:
        model: any network that :func:`udas_fast.models.heads` understands; None builds the recipe's own.
        recipe: what to do.
        data: opened datasets, or their names.
        run: the run's folder; it must be new, or hold the same run (:meth:`resume`).
        weights: a checkpoint to start from, see :func:`udas_fast.models.load_weights`.
        seed: everything random follows from it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        log_every: steps between two reads of the losses.
        checkpoint_every: steps between two checkpoints.

    Raises:
        InputError: before any work, where data, weights, device or run folder are not as they should be.
    """

    def __init__(
        self,
        model: nn.Module | None,
        recipe: Recipe,
        data: Domains | DataConfig,
        *,
        run: str | os.PathLike[str],
        weights: str | None = None,
        seed: int = 0,
        device: str = "auto",
        log_every: int = 20,
        checkpoint_every: int = 500,
    ) -> None:
        named = data if isinstance(data, DataConfig) else None
        domains = Domains.open(data, recipe) if isinstance(data, DataConfig) else data
        config = RunConfig(named, domains.chosen_engine, weights, seed, log_every, checkpoint_every)
        self._set_up(model, recipe, domains, Path(run), config, device)
        self.domains.verify()
        if self.checkpoints.newest() is not None:
            raise bad(f"run folder {run}", "an earlier run with checkpoints", "a new folder, or --resume")
        _write_run_file(self.run, recipe, config)

    @classmethod
    def resume(
        cls,
        run: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        data: Domains | None = None,
        device: str = "auto",
    ) -> Trainer:
        """Go on with the run in folder ``run``; ``model`` and ``data`` only where they were given as objects.

        Raises:
            InputError: no run there, a damaged file, or objects that were given at first and are missing now.
        """
        recipe, config = _read_run_file(Path(run))
        if data is None and config.data is None:
            raise InputError(
                f"run {run}: its datasets were given as objects; give them to Trainer.resume again"
            )
        self = cls.__new__(cls)
        domains = Domains.open(config.data, recipe) if data is None else data
        domains = replace(domains, engine=config.engine)
        self._set_up(model, recipe, domains, Path(run), config, device)
        return self

    def _set_up(
        self,
        model: nn.Module | None,
        recipe: Recipe,
        domains: Domains,
        run: Path,
        config: RunConfig,
        device: str,
    ) -> None:
        self.recipe, self.config, self.run = recipe, config, run
        self.device = resolve_device(device)
        self.amp = build_amp(recipe.precision, self.device)
        self.domains = domains
        self.domains.require(recipe)
        self.faults = Faults(domains.max_bad_files)
        self.classes: ClassSet = self.domains.classes()
        self.model_config = recipe.model if model is None else None
        if model is None:
            seed_step(config.seed, "model", 0)
            model = build_model(recipe.model, len(self.classes))
        self.weights_report = load_weights(model, config.weights) if config.weights else None
        set_checkpointing(model, recipe.memory.checkpointing)
        self.model = model.to(self.device, memory_format=memory_format(self.amp, model))
        self.checkpoints = CheckpointFolder(run / "checkpoints")
        self.scores: dict[str, evaluation.Scores] = {}
        self._phases = [
            (stage, Phase(_phase_name(stage, r), stage.steps, stage.optimizer))
            for stage in recipe.stages
            for r in range(stage.rounds)
        ]

    def describe(self) -> str:
        """What is about to run, on what, in a few lines."""
        parameters = sum(p.numel() for p in self.model.parameters())
        steps = sum(phase.steps for _, phase in self._phases)
        lines = [
            f"recipe {self.recipe.name}: {', '.join(phase.name for _, phase in self._phases)}; {steps} steps",
            f"network {type(self.model).__name__}, {parameters:,} parameters, {len(self.classes)} classes, "
            f"{self.device} in {self.amp.name}",
            self.domains.describe(),
        ]
        return "\n".join(lines if self.weights_report is None else [*lines, self.weights_report.summary()])

    def fit(self) -> dict[str, evaluation.Scores]:
        """Run every phase that is left; scores on the target's val split by phase, also in ``scores.json``.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            InputError: a loss is not finite, or a file turned bad.
        """
        first, saved = self._newest_state()
        before = sum(phase.steps for _, phase in self._phases[:first])
        total = sum(phase.steps for _, phase in self._phases)
        start = before + (saved["loop"]["done"] if saved else 0)
        recorder = Recorder(self.run, first=start, total=total, every=self.config.log_every)
        try:
            with StopSignal() as stop:
                for index, (stage, phase) in list(enumerate(self._phases))[first:]:
                    self._run_phase(index, stage, phase, before, saved, recorder, stop)
                    before, saved = before + phase.steps, None
        finally:
            recorder.close()
        self.save(self.run / "model.pt")
        self._picture()
        return self.scores

    def _run_phase(
        self,
        index: int,
        stage: Stage,
        phase: Phase,
        before: int,
        saved: dict[str, Any] | None,
        recorder: Recorder,
        stop: StopSignal,
    ) -> None:
        seed_step(self.config.seed, phase.name, "objective")
        objective = stage.objective.build(len(self.classes))
        objective.start(self.model)
        objective.to(self.device)
        names = (*stage.objective.needs, *stage.objective.uses)
        streams = self.domains.streams(
            names,
            self.recipe.input,
            mixed="source" in stage.objective.needs,
            seed=self.config.seed,
            phase=phase.name,
            views=stage.objective.views,
            faults=self.faults,
        )
        loop = Loop(phase, self.model, objective, streams, self.amp, self.config.seed)
        if saved is not None:
            loop.load_state_dict(saved["loop"])

        def checkpoint() -> None:
            recorder.flush()  # first: a loss that is not finite must not reach a checkpoint
            scores = {name: score.to_dict() for name, score in self.scores.items()}
            state = {
                "phase": index,
                "scores": scores,
                "bad_files": self.faults.found,
                "loop": loop.state_dict(),
            }
            self.checkpoints.save(state, before + loop.done)

        def after_step(losses: dict[str, Tensor]) -> None:
            recorder.step(before + loop.done - 1, phase.name, loop.lr, losses, loop.data_wait)
            if stop.requested or loop.done % self.config.checkpoint_every == 0 or loop.done == phase.steps:
                checkpoint()
            if stop.requested:
                raise Interrupted(f"stopped after step {before + loop.done}; go on with --resume {self.run}")

        try:
            loop.run(after_step)
        except BadFile as error:
            checkpoint()
            raise BadFile(
                f"{error}; stopped after step {before + loop.done}: repair the file, or raise max_bad_files in "
                f"{self.run / 'run.yaml'}, and go on with --resume {self.run}"
            ) from error
        if self.domains.val is not None:
            self.scores[phase.name] = self.evaluate()
            recorder.scores(before + phase.steps, {f"{phase.name}/miou": self.scores[phase.name].miou})
            self._write_scores()

    def _newest_state(self) -> tuple[int, dict[str, Any] | None]:
        """(index of the phase to run, the checkpoint's state or None)."""
        newest = self.checkpoints.newest()
        if newest is None:
            return 0, None
        state = read_state(newest)
        self.faults.found[:] = state["bad_files"]
        self.scores = {name: evaluation.Scores.from_dict(d) for name, d in state["scores"].items()}
        return state["phase"], state

    def evaluate(self) -> evaluation.Scores:
        """Score the model as it is on the target's val split; labels at their native size.

        Raises:
            InputError: there is no val split.
        """
        if self.domains.val is None:
            raise InputError("evaluate: no val dataset, wanted a target domain")
        size = self.recipe.input.target.size
        return evaluation.evaluate_dataset(self.model, self.domains.val, "val", size)

    def predict(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(train ids uint8, confidence float32), both ``[H, W]``, of a uint8 RGB image ``[H, W, 3]``."""
        return self._trained().predict(image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with its classes and input size, for ``evaluate`` and ``predict``."""
        self._trained().save(Path(path))

    def _trained(self) -> TrainedModel:
        return TrainedModel(self.model, self.model_config, self.classes, self.recipe.input.target.size)

    def _picture(self) -> None:
        if self.domains.val is None:
            return
        folder = self.run / "pictures"
        folder.mkdir(exist_ok=True)
        models, size = {self.recipe.name: self.model}, self.recipe.input.target.size
        evaluation.validation_figure(models, self.model, self.domains.val, size, folder / "val.png")

    def _write_scores(self) -> None:
        document = {
            "recipe": self.recipe.name,
            "seed": self.config.seed,
            "classes": list(self.classes.names),
            "phases": {name: score.to_dict() for name, score in self.scores.items()},
        }
        temporary = self.run / "scores.json.tmp"
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.run / "scores.json")


def _phase_name(stage: Stage, round_index: int) -> str:
    return stage.name if stage.rounds == 1 else f"{stage.name}.{round_index + 1}"


def _write_run_file(run: Path, recipe: Recipe, config: RunConfig) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        document = {"recipe": recipe.to_dict(), "run": asdict(config)}
        (run / "run.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise InputError(f"run folder {run}: cannot be written ({error.strerror})") from error


def _read_run_file(run: Path) -> tuple[Recipe, RunConfig]:
    path = run / "run.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = TypeAdapter(RunConfig).validate_python(document["run"])
    except OSError as error:
        raise InputError(f"run folder {run}: no run to go on with (run.yaml: {error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    return recipe_from_dict(document["recipe"], str(path)), config
