"""The networks of a run before its first step: built or the user's own, with their starting weights and memory."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from udas_fast import distributed
from udas_fast.data import ClassSet
from udas_fast.engine.graph import check_graphs
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.precision import Amp, memory_format
from udas_fast.errors import InputError, bad
from udas_fast.inference import TrainedModel, check_state
from udas_fast.memory import advice, choose_memory
from udas_fast.models import ModelConfig, WeightsReport, build_model, load_weights
from udas_fast.recipes import Recipe
from udas_fast.seeding import seed_step
from udas_fast.training.compile import compile_backbones
from udas_fast.training.probe import check_network
from udas_fast.training.run_config import RunConfig


class Networks(dict[str, nn.Module]):
    """Every network that a stage of ``recipe`` trains, by ``Stage.network``, on the device.

    All begin with the same weights. A user's own network is the one that the last stage trains.

    Args:
        model: the user's own; None builds the recipe's.
        recipe, config: the run's.
        classes: of the data.
        amp: device and precision.
        labelled: whether the run has labelled target images, as these take memory.
        begun: whether there is a checkpoint, so that no other run's model nor weights are needed to start from.

    Attributes:
        trained: the network that is trained now; before the first stage the one that the last stage trains.
        model_config: how the networks are built; None: the user's own.
        memory: what they do to need less of it.
        weights_report: what was loaded of ``config.weights``; None where none were given, or needed any more.

    Raises:
        InputError: weights, network, memory or teachers are not as they should be.
    """

    def __init__(
        self,
        model: nn.Module | None,
        recipe: Recipe,
        config: RunConfig,
        classes: ClassSet,
        amp: Amp,
        *,
        labelled: bool,
        begun: bool,
    ) -> None:
        super().__init__()
        self._recipe, self._run, self._classes, self.amp = recipe, config, classes, amp
        self._labelled = labelled
        # A checkpoint has all weights; a fresh student begins anew with the run's first ones.
        fresh = any(stage.objective.fresh_start for stage in recipe.stages)
        self._weights = config.weights if fresh or not begun else None
        self.model_config = recipe.model if model is None else None
        self.weights_report: WeightsReport | None = None
        model = self.build("model", 0) if model is None else self._take(model)
        self.memory = self._choose_memory()
        self._apply_memory(model)
        self.trained = model.to(amp.device, memory_format=memory_format(amp, model))
        if self.model_config is None:
            needs = (stage.objective.two_heads for stage in recipe.stages)
            two_heads = next((need for need in needs if need), None)
            check_network(model, len(classes), recipe.input.target.size, amp, two_heads)
        if config.start is not None and not begun:
            self._start_from(Path(config.start))
        last = recipe.stages[-1].network
        self[last] = self.trained
        for name in dict.fromkeys(stage.network for stage in recipe.stages if stage.network != last):
            self[name] = copy.deepcopy(self.trained)
        if recipe.cuda_graphs:
            check_graphs(amp.device)
        if recipe.compile:
            compile_backbones(self.values(), self.memory, amp.device)
        self._require_teachers()

    def build(self, *place: int | str) -> nn.Module:
        """The recipe's network with the weights that a run begins with, random ones by the seed and ``place``."""
        seed_step(self._run.seed, *place)
        return self._load_weights(build_model(self._recipe.model, len(self._classes)))

    def _take(self, model: nn.Module) -> nn.Module:
        """The user's own, with the run's weights."""
        check_state(model)
        self._load_weights(model)
        if fresh := [stage.name for stage in self._recipe.stages if stage.objective.fresh_start]:
            raise bad(f"stage {fresh[0]}", "a fresh student of the user's own network", "student: teacher")
        return model

    def _load_weights(self, model: nn.Module) -> nn.Module:
        if self._weights:
            self.weights_report = load_weights(model, self._weights)
        return model

    def _choose_memory(self) -> MemoryConfig:
        if self.model_config is None and self._recipe.memory.budget is not None:
            raise bad(
                "memory.budget", "a network of the user's own", "the recipe's own, which can be predicted"
            )
        return choose_memory(self._share, num_classes=len(self._classes), labelled=self._labelled)

    @property
    def _share(self) -> Recipe:
        """The recipe with this process's part of a batch, which is what its memory is taken for."""
        return replace(self._recipe, input=self._recipe.input.per_process(distributed.get_world_size()))

    def _apply_memory(self, model: nn.Module) -> None:
        memory, name = self.memory, type(model).__name__
        checkpoints, in_parts = memory.apply(model)
        if not checkpoints and memory.checkpointing != "none":
            raise bad(f"checkpointing {memory.checkpointing!r}", f"{name} without a ResNet of ours", "'none'")
        if not in_parts and memory.micro_batch_size is not None:
            expected = "a smaller input.batch_size in its place"
            raise bad("memory.micro_batch_size", f"{name}, a network of the user's own", expected)

    def _start_from(self, path: Path) -> None:
        """Take over the model of a finished run; normalisation and dropout may differ, the rest may not."""
        model, expected = self.trained, self.model_config
        trained = TrainedModel.load(path, self.amp.device, model if expected is None else None)
        if trained.classes.names != self._classes.names:
            found, named = (
                f"{len(classes)} ({', '.join(classes.names):.60})"
                for classes in (trained.classes, self._classes)
            )
            raise bad(f"classes of {path}", found, f"{named}, as in this run's data")
        if expected is not None:
            found = replace(trained.config, norm=expected.norm, dropout=expected.dropout)
            if found != expected:
                raise bad(f"network of {path}", _difference(found, expected), _difference(expected, found))
            weights = model.state_dict().keys()
            model.load_state_dict({k: v for k, v in trained.model.state_dict().items() if k in weights})

    def _require_teachers(self) -> None:
        for stage in self._recipe.stages:
            for name in stage.objective.teachers:
                if name not in self:
                    found = f"no network {name!r} to learn from"
                    raise bad(f"stage {stage.name}", found, "a stage that trains it")

    def out_of_memory(self, phase: str, error: torch.OutOfMemoryError) -> InputError:
        """What to tell of ``error`` in ``phase``: where, and what to set."""
        advise = "set a smaller input.batch_size or size"
        if self.model_config is not None:
            classes = len(self._classes)
            advise = advice(self._share, self.memory, num_classes=classes, labelled=self._labelled)
        return InputError(f"{phase} ran out of memory ({str(error).splitlines()[0]}): {advise}")


def _difference(config: ModelConfig, other: ModelConfig) -> str:
    """What ``config`` has otherwise than ``other``."""
    pairs = ((name, value, getattr(other, name)) for name, value in asdict(config).items())
    return ", ".join(f"{name} {value}" for name, value, theirs in pairs if value != theirs)
