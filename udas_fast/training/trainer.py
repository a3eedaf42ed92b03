"""The trainer: runs a recipe on a model and two domains, into a run folder that can be continued."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from torch import nn

from udas_fast import distributed, evaluation
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.distributed import join
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.engine.optim import MakeOptimizer, apex_sgd
from udas_fast.engine.precision import build_amp
from udas_fast.errors import InputError, bad, first_problem
from udas_fast.inference import TrainedModel
from udas_fast.recipes import Recipe
from udas_fast.training import Networks, Phases, Results
from udas_fast.training.environment import write_environment
from udas_fast.training.lock import locked
from udas_fast.training.run_config import RunConfig, require_objects
from udas_fast.training.run_folder import (
    begin_run,
    read_run_file,
    require_same_run,
    require_unused,
    write_run_file,
)


class Trainer:
    """Trains ``model`` by ``recipe`` on ``data``; under torchrun all processes do so together.

    Args:
        recipe: what to do.
        data: datasets and loaders as objects, or datasets' names.
        model: any network that :func:`udas_fast.models.heads` understands; None builds the recipe's own.
        run_dir: the run's folder; it must be new, or hold the same run (:meth:`resume`).
        weights: a checkpoint to start from, see :func:`udas_fast.models.load_weights`.
        start: a finished run, or its ``model.safetensors``, whose model the first stage starts from.
        seed: everything random follows from it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        log_every: steps between two reads of the losses.
        checkpoint_every: steps between two checkpoints.
        optimizer: makes the optimiser of each network that is trained, with any parameter groups; None: the recipe's.
            The recipe's schedule scales the rates of its groups.
        max_bad_steps: steps with a loss or gradient that is not finite which are left out and counted; one more ends
            the run. Above 0 the host waits for every step.
        callbacks: are told of steps and phases, in the main process; see
            :class:`udas_fast.engine.callbacks.Callback`.

    Raises:
        InputError: before any work, where data, weights, device or run folder are not as they should be.
    """

    @distributed.stopping_all()
    def __init__(
        self,
        recipe: Recipe,
        data: Domains | DataConfig,
        model: nn.Module | None = None,
        *,
        run_dir: str | os.PathLike[str],
        weights: str | None = None,
        start: str | None = None,
        seed: int = 0,
        device: str = "auto",
        log_every: int = 20,
        checkpoint_every: int = 500,
        max_bad_steps: int = 0,
        optimizer: MakeOptimizer | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.device = join(device)
        named = data if isinstance(data, DataConfig) else None
        domains = Domains.open(data, recipe) if isinstance(data, DataConfig) else data
        given = tuple(name for name, part in (("model", model), ("optimizer", optimizer)) if part is not None)
        try:
            config = RunConfig(
                named,
                given,
                domains.chosen_engine,
                weights=weights,
                start=start,
                seed=seed,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                max_bad_steps=max_bad_steps,
            )
        except ValidationError as error:
            raise InputError(f"Trainer: {first_problem(error)}") from None
        self._set_up(model, recipe, domains, Path(run_dir), config, optimizer, callbacks)
        distributed.on_main(lambda: require_unused(self.run_dir))  # not only after every file has been read
        self.domains.verify()
        distributed.on_main(lambda: begin_run(self.run_dir, self.recipe, self.config))

    @classmethod
    @distributed.stopping_all()
    def resume(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        data: Domains | None = None,
        max_bad_files: int = 0,
        device: str = "auto",
        optimizer: MakeOptimizer | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trainer:
        """Go on with the run in folder ``run``; ``model``, ``data`` and ``optimizer`` where they were given as objects.

        What ``run.yaml`` says now is what is done; what was edited since the checkpoint is told on standard error.

        A ``max_bad_files`` above the run's own becomes its limit from here on, in ``run.yaml`` too; datasets
        that are objects have a limit of their own.

        Raises:
            InputError: no run there, a damaged file, or objects that were given at first and are missing now.
        """
        self = cls.__new__(cls)
        self.device = join(device)
        recipe, config = read_run_file(Path(run_dir), RunConfig)
        require_objects(Path(run_dir), config, model=model, data=data, optimizer=optimizer)
        if data is None and max_bad_files > config.data.max_bad_files:
            config = replace(config, data=replace(config.data, max_bad_files=max_bad_files))
            distributed.on_main(lambda: cls._rewrite(Path(run_dir), recipe, config))
        domains = Domains.open(config.data, recipe) if data is None else data
        domains = replace(domains, engine=config.engine)
        self._set_up(model, recipe, domains, Path(run_dir), config, optimizer, callbacks)
        return self

    @staticmethod
    def _rewrite(run: Path, recipe: Recipe, config: RunConfig) -> None:
        with locked(run):  # another process may be training there
            write_run_file(run, recipe, config)

    def _set_up(
        self,
        model: nn.Module | None,
        recipe: Recipe,
        domains: Domains,
        run: Path,
        config: RunConfig,
        optimizer: MakeOptimizer | None,
        callbacks: Sequence[Callback],
    ) -> None:
        if recipe.trains != "segmentation":
            raise bad(
                f"recipe {recipe.name}",
                f"one that trains {recipe.trains}",
                "one for segmentation: `udas-fast translate` runs this",
            )
        if any(stage.optimizer.name == "apex_sgd" for stage in recipe.stages):
            apex_sgd()  # now, and not when its stage begins
        self.recipe, self.config, self.run_dir, self.domains = recipe, config, run, domains
        self.callbacks = tuple(callbacks) if distributed.is_main() else ()
        self.checkpoints = CheckpointFolder(run / "checkpoints")
        amp = build_amp(recipe.precision, self.device)
        domains.require(recipe)
        self.classes = domains.classes()
        self.networks = Networks(
            model,
            recipe,
            config,
            self.classes,
            amp,
            labelled=domains.labelled is not None,
            begun=self.checkpoints.newest() is not None,
        )
        self._results = Results(
            run, recipe, config.seed, self.classes, self.networks.model_config, domains.val
        )
        self._phases = Phases(
            run,
            recipe,
            config,
            domains,
            self.networks,
            self._results,
            self.checkpoints,
            optimizer,
            self.callbacks,
        )
        self.scores, self.faults = self._results.scores, self._phases.faults

    @property
    def model(self) -> nn.Module:
        """The network that is trained: now, or by the last stage where no run is under way."""
        return self.networks.trained

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end: its model is written last."""
        return self._results.complete

    def describe(self) -> str:
        """What is about to run, on what, in a few lines."""
        parameters = sum(p.numel() for p in self.model.parameters())
        networks, phases = self.networks, self._phases
        checkpointing, size = networks.memory.checkpointing, networks.memory.micro_batch_size
        spared = f"checkpointing {checkpointing}" + (f", micro-batches of {size}" if size else "")
        lines = [
            f"recipe {self.recipe.name}: {', '.join(phases.names)}; {phases.steps} steps",
            f"network {type(self.model).__name__}, {parameters:,} parameters, {len(self.classes)} classes, "
            f"{self._processes()} in {networks.amp.name}, {spared}",
            self.domains.describe(),
        ]
        report = networks.weights_report
        return "\n".join(lines if report is None else [*lines, report.summary()])

    def _processes(self) -> str:
        world = distributed.get_world_size()
        return str(self.device) if world == 1 else f"{world} processes on {self.device.type}"

    @distributed.stopping_all()
    def fit(self) -> dict[str, evaluation.Scores]:
        """Run every phase that is left; scores on the target's val split by phase, also in ``scores.json``.

        A run that is complete does nothing and returns its scores.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            InputError: a loss is not finite, a file turned bad, or the GPU's memory was not enough.
        """
        if distributed.on_main(lambda: self.complete):
            TrainedModel.load(self.run_dir, self.device, self.model)
            self._results.read_scores()
            return self.scores
        with ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(locked(self.run_dir)))
            require_same_run(self.run_dir, self.recipe, self.config)
            name = self.networks.amp.name
            distributed.on_main(lambda: write_environment(self.run_dir, self._processes(), name))
            self._phases.run()
            distributed.on_main(self._finish)
        return self.scores

    def _finish(self) -> None:
        self._results.finish(self.model)
        for callback in self.callbacks:
            callback.on_run_end(self.run_dir)

    def evaluate(self) -> evaluation.Scores:
        """Score the model as it is on the target's val split; labels at their native size.

        Among several processes all have to call this, and all get the scores of the whole split.

        Raises:
            InputError: there is no val split.
        """
        if self.domains.val is None:
            raise InputError("evaluate: no val dataset, expected a target domain")
        return self._results.score(self.model)

    def predict(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(train ids uint8, confidence float32), both ``[H, W]``, of a uint8 RGB image ``[H, W, 3]``."""
        return self._results.trained(self.model).predict(image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with its classes, input size and protocol (:class:`udas_fast.TrainedModel`).

        Among several processes the main one writes.
        """
        if distributed.is_main():
            self._results.trained(self.model).save(Path(path))
