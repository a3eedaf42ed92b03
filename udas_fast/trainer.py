"""The trainer: runs a recipe on a model and two domains, into a run folder that can be continued."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from udas_fast import distributed, evaluation
from udas_fast.atomic import atomic_write
from udas_fast.data import ClassSet, Faults, Loader
from udas_fast.doctor import write_environment
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.engine.compile import compile_backbones
from udas_fast.engine.distributed import join
from udas_fast.engine.fault import BadSteps
from udas_fast.engine.lock import locked
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.optim import MakeOptimizer, apex_sgd
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.engine.probe import check_network
from udas_fast.engine.runner import Runner, open_runner
from udas_fast.engine.seeding import seed_step
from udas_fast.errors import InputError, bad
from udas_fast.inference import MODEL_FILE, TrainedModel, check_state
from udas_fast.models import ModelConfig, build_model, load_weights, normalize
from udas_fast.objectives import Objective, Round
from udas_fast.plan import advice, choose_memory
from udas_fast.recipes import Recipe, Stage
from udas_fast.recipes.domains import DataConfig, Domains
from udas_fast.recipes.run_config import RunConfig, require_objects
from udas_fast.recipes.run_file import changed_since, read_run_file, run_document, write_run_file


class Trainer:
    """Trains ``model`` by ``recipe`` on ``data``; under torchrun all processes do so together.

    Args:
        model: any network that :func:`udas_fast.models.heads` understands; None builds the recipe's own.
        recipe: what to do.
        data: datasets and loaders as objects, or datasets' names.
        run: the run's folder; it must be new, or hold the same run (:meth:`resume`).
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
        model: nn.Module | None,
        recipe: Recipe,
        data: Domains | DataConfig,
        *,
        run: str | os.PathLike[str],
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
        config = RunConfig(
            named,
            given,
            domains.chosen_engine,
            weights,
            start,
            seed,
            log_every,
            checkpoint_every,
            max_bad_steps,
        )
        self._set_up(model, recipe, domains, Path(run), config, optimizer, callbacks)
        self.domains.verify()
        distributed.on_main(self._begin)

    def _begin(self) -> None:
        with locked(self.run):
            if self.checkpoints.newest() is not None or self.complete:
                raise bad(f"run folder {self.run}", "an earlier run", "a new folder, or --resume")
            write_run_file(self.run, self.recipe, self.config)

    @classmethod
    @distributed.stopping_all()
    def resume(
        cls,
        run: str | os.PathLike[str],
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
        recipe, config = read_run_file(Path(run), RunConfig)
        require_objects(Path(run), config, model=model, data=data, optimizer=optimizer)
        if data is None and max_bad_files > config.data.max_bad_files:
            config = replace(config, data=replace(config.data, max_bad_files=max_bad_files))
            distributed.on_main(lambda: write_run_file(Path(run), recipe, config))
        domains = Domains.open(config.data, recipe) if data is None else data
        domains = replace(domains, engine=config.engine)
        self._set_up(model, recipe, domains, Path(run), config, optimizer, callbacks)
        return self

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
        self.recipe, self.config, self.run = recipe, config, run
        self.optimizer = optimizer
        self.callbacks = tuple(callbacks) if distributed.is_main() else ()
        self.amp = build_amp(recipe.precision, self.device)
        self.domains = domains
        self.domains.require(recipe)
        self.faults = Faults(domains.max_bad_files)
        self.bad_steps = BadSteps(config.max_bad_steps)
        self.classes: ClassSet = self.domains.classes()
        self.model_config = recipe.model if model is None else None
        if model is None:
            model = self._build_model("model", 0)
        else:
            check_state(model)
            self.weights_report = load_weights(model, config.weights) if config.weights else None
            if fresh := [stage.name for stage in recipe.stages if stage.objective.fresh_start]:
                raise bad(
                    f"stage {fresh[0]}", "a fresh student of the user's own network", "student: teacher"
                )
        self.memory = self._choose_memory()
        self._set_up_memory(model)
        self.model = model.to(self.device, memory_format=memory_format(self.amp, model))
        if self.model_config is None:
            needs = (stage.objective.two_heads for stage in recipe.stages)
            two_heads = next((need for need in needs if need), None)
            check_network(model, len(self.classes), recipe.input.target.size, self.amp, two_heads)
        self.checkpoints = CheckpointFolder(run / "checkpoints")
        if config.start is not None and self.checkpoints.newest() is None:
            self._start_from(Path(config.start))
        # The network that is trained is self.model; a user's own is the one that the last stage trains.
        last = recipe.stages[-1].network
        self.networks = {last: self.model}
        for name in dict.fromkeys(stage.network for stage in recipe.stages if stage.network != last):
            self.networks[name] = copy.deepcopy(self.model)
        if recipe.compile:
            compile_backbones(self.networks.values(), self.memory, self.device)
        for stage in recipe.stages:
            for name in set(stage.objective.teachers) - set(self.networks):
                raise bad(
                    f"stage {stage.name}", f"no network {name!r} to learn from", "a stage that trains it"
                )
        self.scores: dict[str, evaluation.Scores] = {}
        self._phases = [
            (stage, Phase(_phase_name(stage, r), stage.steps, stage.optimizer))
            for stage in recipe.stages
            for r in range(stage.rounds)
        ]

    def _build_model(self, *place: int | str) -> nn.Module:
        """The recipe's network with the weights that a run begins with, random ones by the seed and ``place``."""
        seed_step(self.config.seed, *place)
        model = build_model(self.recipe.model, len(self.classes))
        self.weights_report = load_weights(model, self.config.weights) if self.config.weights else None
        return model

    def _set_up_memory(self, model: nn.Module) -> None:
        memory, name = self.memory, type(model).__name__
        checkpoints, in_parts = memory.apply(model)
        if not checkpoints and memory.checkpointing != "none":
            raise bad(f"checkpointing {memory.checkpointing!r}", f"{name} without a ResNet of ours", "'none'")
        if not in_parts and memory.micro_batch_size is not None:
            wanted = "a smaller input.batch_size in its place"
            raise bad("memory.micro_batch_size", f"{name}, a network of the user's own", wanted)

    def _choose_memory(self) -> MemoryConfig:
        memory = self.recipe.memory
        if self.model_config is None and memory.budget is not None:
            raise bad(
                "memory.budget", "a network of the user's own", "the recipe's own, which can be predicted"
            )
        return choose_memory(
            self._own_recipe, num_classes=len(self.classes), labelled=self.domains.labelled is not None
        )

    @property
    def _own_recipe(self) -> Recipe:
        """The recipe with this process's part of a batch, which is what its memory is taken for."""
        inputs = self.recipe.input
        batch_size = max(1, inputs.batch_size // distributed.world())
        return replace(self.recipe, input=replace(inputs, batch_size=batch_size))

    def _start_from(self, path: Path) -> None:
        """Take over the model of a finished run; normalisation and dropout may differ, the rest may not."""
        own = self.model_config is None
        trained = TrainedModel.load(path, self.device, self.model if own else None)
        if trained.classes.names != self.classes.names:
            found, wanted = (
                f"{len(classes)} ({', '.join(classes.names):.60})"
                for classes in (trained.classes, self.classes)
            )
            raise bad(f"classes of {path}", found, f"{wanted}, as in this run's data")
        if not own:
            wanted = self.recipe.model
            found = replace(trained.config, norm=wanted.norm, dropout=wanted.dropout)
            if found != wanted:
                raise bad(f"network of {path}", _difference(found, wanted), _difference(wanted, found))
            weights = self.model.state_dict().keys()
            self.model.load_state_dict({k: v for k, v in trained.model.state_dict().items() if k in weights})

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end: its model is written last."""
        return (self.run / MODEL_FILE).is_file()

    def describe(self) -> str:
        """What is about to run, on what, in a few lines."""
        parameters = sum(p.numel() for p in self.model.parameters())
        steps = sum(phase.steps for _, phase in self._phases)
        lines = [
            f"recipe {self.recipe.name}: {', '.join(phase.name for _, phase in self._phases)}; {steps} steps",
            f"network {type(self.model).__name__}, {parameters:,} parameters, {len(self.classes)} classes, "
            f"{self._processes()} in {self.amp.name}, {self._spared()}",
            self.domains.describe(),
        ]
        return "\n".join(lines if self.weights_report is None else [*lines, self.weights_report.summary()])

    def _spared(self) -> str:
        checkpointing, size = self.memory.checkpointing, self.memory.micro_batch_size
        return f"checkpointing {checkpointing}" + (f", micro-batches of {size}" if size else "")

    def _processes(self) -> str:
        world = distributed.world()
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
            return self._finished()
        with ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(locked(self.run)))
            return self._train()

    def _train(self) -> dict[str, evaluation.Scores]:
        if read_run_file(self.run, RunConfig) != (self.recipe, self.config):
            raise bad(
                f"{self.run}/run.yaml", "another run than this trainer's", "a folder of its own for each"
            )
        distributed.on_main(lambda: write_environment(self.run, self._processes(), self.amp.name))
        first, saved = self._newest_state()
        before = sum(phase.steps for _, phase in self._phases[:first])
        total = sum(phase.steps for _, phase in self._phases)
        start = before + (saved["loop"]["done"] if saved else 0)
        config = self.config
        with open_runner(
            self.run,
            self.checkpoints,
            first=start,
            total=total,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            callbacks=self.callbacks,
        ) as runner:
            for index, (stage, phase) in list(enumerate(self._phases))[first:]:
                try:
                    self._run_phase(index, stage, phase, before, saved, runner)
                except torch.OutOfMemoryError as error:
                    raise self._out_of_memory(phase, error) from error
                before, saved = before + phase.steps, None
        distributed.on_main(self._finish)
        return self.scores

    def _finish(self) -> None:
        self._picture()
        self.save(self.run / MODEL_FILE)  # last: it says that the run is complete
        for callback in self.callbacks:
            callback.on_run_end(self.run)

    def _finished(self) -> dict[str, evaluation.Scores]:
        TrainedModel.load(self.run, self.device, self.model)
        if self.domains.val is not None:
            phases = json.loads((self.run / "scores.json").read_text(encoding="utf-8"))["phases"]
            self.scores = {name: evaluation.Scores.from_dict(content) for name, content in phases.items()}
        return self.scores

    def _run_phase(
        self,
        index: int,
        stage: Stage,
        phase: Phase,
        before: int,
        saved: dict[str, Any] | None,
        runner: Runner,
    ) -> None:
        seed_step(self.config.seed, phase.name, "objective")
        self.model = self.networks[stage.network]
        objective = stage.objective.build(len(self.classes))
        self.memory.apply(objective)
        objective.networks = self.networks
        objective.start(self.model)
        objective.to(self.device)
        if stage.objective.fresh_start:
            self.model.load_state_dict(self._build_model(phase.name, "student").state_dict())
        if saved is not None:
            objective.load_state_dict(saved["loop"]["objective"])  # labels are made by the teacher that was
        around = self._round(phase, runner)
        with self.amp.autocast():
            unlabelled = objective.prepare(around)
        streams = self.domains.streams(
            (*stage.objective.needs, *stage.objective.uses),
            self.recipe.input,
            mixed="source" in stage.objective.needs,
            seed=self.config.seed,
            phase=phase.name,
            views=stage.objective.stream_views,
            faults=self.faults,
            unlabelled=unlabelled,
        )
        loop = Loop(
            phase,
            self.model,
            objective,
            streams,
            self.amp,
            self.config.seed,
            ema=self.recipe.ema,
            optimizer=self.optimizer,
            bad_steps=self.bad_steps,
        )
        if saved is not None:
            loop.load_state_dict(saved["loop"])

        def state() -> dict[str, Any]:
            scores = {name: score.to_dict() for name, score in self.scores.items()}
            idle = {k: n.state_dict() for k, n in self.networks.items() if n is not self.model}
            found = [sentence for part in distributed.all_values(self.faults.found) for sentence in part]
            self.faults.found[:] = dict.fromkeys(found)  # all processes' files, each once
            return {
                "phase": index,
                "scores": scores,
                "bad_files": self.faults.found,
                "bad_steps": self.bad_steps.found,
                "networks": idle,
                "run": run_document(self.recipe, self.config),
            }

        runner.run(loop, before, state)
        with self.amp.autocast():
            objective.finish(around)
        self._end_phase(phase, objective, before + phase.steps, runner)

    def _end_phase(self, phase: Phase, objective: Objective, step: int, runner: Runner) -> None:
        """Score what the phase has trained, write it and tell of it."""
        scores: dict[str, evaluation.Scores] = {}
        if self.domains.val is not None:
            scores = {f"{phase.name}.{k}": self._score(network) for k, network in objective.scored().items()}
            scores[phase.name] = self.evaluate()
            self.scores |= scores
            runner.recorder.scores(step, {f"{phase.name}/miou": scores[phase.name].miou})
            distributed.on_main(self._write_scores)
        for callback in self.callbacks:
            callback.on_phase_end(phase.name, step, {name: score.miou for name, score in scores.items()})

    def _round(self, phase: Phase, runner: Runner) -> Round:
        layout, unlabelled = memory_format(self.amp, self.model), self.domains.unlabelled
        return Round(
            name=phase.name,
            unlabelled=None if isinstance(unlabelled, Loader) else unlabelled,
            size=self.recipe.input.target.size,
            folder=self.run / "pseudo_labels" / phase.name,
            picture=self.run / "pictures" / f"{phase.name}-pseudo.png",
            generator=partial(seed_step, self.config.seed, phase.name),
            normalize=lambda image: normalize(image).contiguous(memory_format=layout),
            check_stop=runner.check_stop,
        )

    def _out_of_memory(self, phase: Phase, error: torch.OutOfMemoryError) -> InputError:
        advise = "set a smaller input.batch_size or size"
        if self.model_config is not None:
            labelled = self.domains.labelled is not None
            advise = advice(self._own_recipe, self.memory, num_classes=len(self.classes), labelled=labelled)
        return InputError(f"{phase.name} ran out of memory ({str(error).splitlines()[0]}): {advise}")

    def _newest_state(self) -> tuple[int, dict[str, Any] | None]:
        """(index of the phase to run, the checkpoint's state or None)."""
        state = self.checkpoints.load()
        if state is None:
            return 0, None
        now = run_document(self.recipe, self.config)
        for change in changed_since(state.get("run", now), now):  # older checkpoints do not say
            if distributed.is_main():
                tqdm.write(f"run.yaml was edited since the checkpoint: {change}", file=sys.stderr)
        self.faults.found[:] = state["bad_files"]
        self.bad_steps.found = state.get("bad_steps", 0)
        for name, weights in state.get("networks", {}).items():
            self.networks[name].load_state_dict(weights)
        self.scores = {name: evaluation.Scores.from_dict(d) for name, d in state["scores"].items()}
        return state["phase"], state

    def evaluate(self) -> evaluation.Scores:
        """Score the model as it is on the target's val split; labels at their native size.

        Among several processes all have to call this, and all get the scores of the whole split.

        Raises:
            InputError: there is no val split.
        """
        if self.domains.val is None:
            raise InputError("evaluate: no val dataset, wanted a target domain")
        return self._score(self.model)

    def _score(self, network: nn.Module) -> evaluation.Scores:
        return evaluation.evaluate_dataset(network, self.domains.val, "val", self.recipe.input.target.size)

    def predict(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(train ids uint8, confidence float32), both ``[H, W]``, of a uint8 RGB image ``[H, W, 3]``."""
        return self._trained().predict(image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with its classes, input size and protocol (:class:`udas_fast.TrainedModel`).

        Among several processes the main one writes.
        """
        if distributed.is_main():
            self._trained().save(Path(path))

    def _trained(self) -> TrainedModel:
        scores = list(self.scores.values())
        protocol = scores[-1].protocol if scores else None
        return TrainedModel(
            self.model, self.model_config, self.classes, self.recipe.input.target.size, protocol
        )

    def _picture(self) -> None:
        if self.domains.val is None or isinstance(self.domains.val, Loader):
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
        atomic_write(json.dumps(document, indent=2) + "\n", self.run / "scores.json")


def _phase_name(stage: Stage, round_index: int) -> str:
    return stage.name if stage.rounds == 1 else f"{stage.name}.{round_index + 1}"


def _difference(config: ModelConfig, other: ModelConfig) -> str:
    """What ``config`` has otherwise than ``other``."""
    pairs = ((name, value, getattr(other, name)) for name, value in asdict(config).items())
    return ", ".join(f"{name} {value}" for name, value, theirs in pairs if value != theirs)
