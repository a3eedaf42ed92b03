"""The networks of a run before its first step: built or the user's own, with their starting weights and memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from udas_fast import distributed
from udas_fast.data import ClassSet
from udas_fast.engine.graph import check_graphs
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.precision import Amp, memory_format
from udas_fast.errors import InputError, bad, first_line
from udas_fast.evaluation import evaluating
from udas_fast.inference import TrainedModel, check_state
from udas_fast.memory import advice, choose_memory
from udas_fast.models import (
    Backbone,
    ModelConfig,
    WeightsReport,
    build_model,
    load_pretrained,
    load_weights,
    require_backbone,
    require_tokens,
    to_output,
)
from udas_fast.objectives.base import build_objective
from udas_fast.recipes import Recipe, Stage
from udas_fast.seeding import seed_step
from udas_fast.training.run_folder import RunConfig

FIRST = "first"  # the network as it was at the start, where that cannot be built again, for fresh students


class Networks(dict[str, nn.Module]):
    """Every network that a stage of ``recipe`` trains, by ``Stage.network``, on the device.

    All of the recipe's architecture begin with the same weights. A user's own network is the one that the last stage
    trains.

    Args:
        model: the user's own; None builds the recipe's.
        recipe, config: the run's.
        classes: classes of the data.
        amp: device and precision.
        labelled: whether the run has labelled target images, as these take memory.
        begun: whether there is a checkpoint, so that neither another run's model nor weights are needed to start.

    Attributes:
        trained: the network that is trained now; before the first stage the one that the last stage trains.
        memory: checkpointing and micro-batches that save memory.
        selected: how the model of ``config.start`` was chosen among those of its run; None: it is the last.
        weights_report: what was loaded of ``config.weights`` or ``model.hf``, of the last network that was built; None
            where none were given, or none are needed.

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
        if config.reset_head and config.weights is None:
            raise bad("--reset-head", "no --weights", "the weights whose head is left out")
        self._recipe, self._run, self._classes, self.amp = recipe, config, classes, amp
        self._labelled = labelled
        fresh = [stage for stage in recipe.stages if stage.objective.requirements.fresh_start]
        # Where the first stage has a fresh student already, the run's start is the teacher of that.
        first_of_start = bool(fresh) and fresh[0] is not recipe.stages[0] and config.start is not None
        first_of_user = bool(fresh) and not first_of_start and model is not None
        built_anew = [s for s in fresh if s.model is not None or not (first_of_start or first_of_user)]
        # A checkpoint has all weights; a fresh student begins anew with the run's first ones.
        self._needs_weights, self._own = bool(built_anew) or not begun, model is not None
        if self._own and any(stage.model for stage in recipe.stages):
            raise bad("model of a stage", "one beside a network of the user's own", "null")
        self._random = not (self._own or begun or config.weights or recipe.model.hf or config.start)
        self.weights_report: WeightsReport | None = None
        self.selected: str | None = None
        last = recipe.stages[-1].network
        base = next((stage.network for stage in reversed(recipe.stages) if stage.model is None), last)
        model = self.build(base, "model", 0) if model is None else self._take(model)
        self.memory = self._choose_memory()
        self.trained = self._placed(model)
        if self._own:
            reasons = (stage.objective.requirements.auxiliary_head for stage in recipe.stages)
            auxiliary_head = next((reason for reason in reasons if reason), None)
            check_network(model, len(classes), recipe.input.target.size, amp, auxiliary_head)
        if first_of_user:
            self._keep_first()
        if config.start is not None and not begun:
            self._start_from(Path(config.start))
        if first_of_start:
            self._keep_first()
        self[base] = self.trained
        for stage in recipe.stages:
            if (name := stage.network) not in self:
                alike = stage.model is None
                self[name] = (
                    copy.deepcopy(self[base]) if alike else self._placed(self.build(name, "model", name))
                )
        self.trained = self[last]
        if recipe.cuda_graphs:
            check_graphs(amp.device)
        if recipe.compile:
            compile_backbones(self.values(), self.memory, amp.device)
        self._check_methods()

    @property
    def model_config(self) -> ModelConfig | None:
        """Architecture of the network that is trained; None: the user's own."""
        return None if self._own else self._recipe.model_of(self._name)

    @property
    def _name(self) -> str:
        return next(name for name, network in self.items() if network is self.trained)

    def build(self, name: str, *place: int | str) -> nn.Module:
        """Return network ``name`` with the run's first weights, random ones by the seed and ``place``."""
        seed_step(self._run.seed, *place)
        config = self._recipe.model_of(name)
        model = build_model(config, len(self._classes))
        if not self._needs_weights:
            return model
        if self._run.weights and config == self._recipe.model:
            return self._load_weights(model)
        if config.hf:
            self.weights_report = load_pretrained(model, config.hf)
        return model

    def _placed(self, model: nn.Module) -> nn.Module:
        """Return ``model`` on the device, in its memory format, with the settings that save memory."""
        self._apply_memory(model)
        model = model.to(self.amp.device)
        return model.to(memory_format=memory_format(self.amp, model))  # type: ignore[call-overload]  # torch's stub lacks it

    def begin_anew(self, *place: int | str) -> None:
        """Give the trained network the run's first weights; random ones of a recipe's network depend on ``place``."""
        kept = FIRST in self and self.model_config in (None, self._recipe.model)
        first = self[FIRST] if kept else self.build(self._name, *place)
        self.trained.load_state_dict(first.state_dict())

    def _keep_first(self) -> None:
        self[FIRST] = copy.deepcopy(self.trained).requires_grad_(False)

    def _take(self, model: nn.Module) -> nn.Module:
        """Return the user's own network with the run's weights."""
        check_state(model)
        return self._load_weights(model) if self._run.weights and self._needs_weights else model

    def _load_weights(self, model: nn.Module) -> nn.Module:
        assert self._run.weights is not None
        self.weights_report = load_weights(model, self._run.weights, reset_head=self._run.reset_head)
        return model

    def _choose_memory(self) -> MemoryConfig:
        if self._own and self._recipe.memory.budget is not None:
            raise bad(
                "memory.budget", "a network of the user's own", "the recipe's own, which can be predicted"
            )
        return choose_memory(self._share, num_classes=len(self._classes), labelled=self._labelled)

    @property
    def _share(self) -> Recipe:
        """The recipe with this process's part of a batch, which is what takes its memory."""
        return replace(self._recipe, input=self._recipe.input.per_process(distributed.get_world_size()))

    def _apply_memory(self, model: nn.Module) -> None:
        memory, name = self.memory, type(model).__name__
        checkpoints, in_parts = memory.apply(model)
        if not checkpoints and memory.checkpointing != "none":
            raise bad(
                f"checkpointing {memory.checkpointing!r}", f"{name} without a backbone of udas_fast", "'none'"
            )
        if not in_parts and memory.micro_batch_size is not None:
            expected = "a smaller input.batch_size in its place"
            raise bad("memory.micro_batch_size", f"{name}, a network of the user's own", expected)

    def _start_from(self, path: Path) -> None:
        """Take over the model of a finished run; normalisation and dropout may differ, the rest may not."""
        model, expected = self.trained, None if self._own else self._recipe.model
        trained = TrainedModel.load(path, self.amp.device, model if expected is None else None)
        self.selected = trained.selected
        if trained.classes.names != self._classes.names:
            there, here = (
                f"{len(classes)} ({', '.join(classes.names):.60})"
                for classes in (trained.classes, self._classes)
            )
            other_way = "--weights of its model.safetensors with --reset-head takes all but the head"
            raise bad(f"classes of {path}", there, f"{here}, as in this run's data; {other_way}")
        if expected is not None and trained.config is not None:
            found = replace(trained.config, norm=expected.norm, dropout=expected.dropout)
            if found != expected:
                raise bad(f"network of {path}", _difference(found, expected), _difference(expected, found))
            weights = model.state_dict().keys()
            model.load_state_dict({k: v for k, v in trained.model.state_dict().items() if k in weights})

    def _check_methods(self) -> None:
        """Raise InputError where a method cannot be built, or asks for another network than there is."""
        for stage in self._recipe.stages:
            build_objective(stage.objective, len(self._classes))
            check_stage(stage, self.trained, random=self._random)
            for name in stage.objective.requirements.networks:
                if name not in self:
                    found = f"no network {name!r} to learn from"
                    raise bad(f"stage {stage.name}", found, "a stage that trains it")

    def out_of_memory(self, phase: str, error: Exception) -> InputError:
        """Return a sentence about ``error`` in ``phase``: where it arose, and what to set."""
        advise = "set a smaller input.batch_size or size"
        if not self._own:
            classes = len(self._classes)
            advise = advice(self._share, self.memory, num_classes=classes, labelled=self._labelled)
        return InputError(f"{phase} ran out of memory ({first_line(error)}): {advise}")


def check_stage(stage: Stage, network: nn.Module, *, random: bool) -> None:
    """Raise InputError where the method of ``stage`` cannot use ``network``; ``random``: it has no trained weights."""
    requirements = stage.objective.requirements
    if requirements.backbone is not None:
        require_backbone(network, f"{requirements.backbone} of stage {stage.name}")
    if requirements.tokens is not None:
        require_tokens(network, f"{requirements.tokens} of stage {stage.name}")
    if requirements.pretrained is not None and random:
        expected = f"--weights FILE, or stages.{stage.name}.objective.{requirements.pretrained}=null"
        raise bad(f"{requirements.pretrained} of stage {stage.name}", "random first weights", expected)


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether ``error`` is one of memory that is used up, the GPU's or the machine's."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _difference(config: ModelConfig, other: ModelConfig) -> str:
    """Return the values of ``config`` that ``other`` has not."""
    pairs = ((name, value, getattr(other, name)) for name, value in asdict(config).items())
    return ", ".join(f"{name} {value}" for name, value, others in pairs if value != others)


def check_network(
    model: nn.Module, num_classes: int, size: tuple[int, int], amp: Amp, auxiliary_head: str | None
) -> None:
    """Run ``model`` once on a blank image of ``size`` (H, W), in evaluation mode, and check its output.

    Args:
        model: a user's network, on the device.
        num_classes: channels that its logits must have.
        size: size of the images that it will see.
        amp: device and precision.
        auxiliary_head: reason for an auxiliary head; None where one head is enough.

    Raises:
        InputError: the forward fails, or its output is not logits of these classes, or has too few heads.
    """
    name = f"model {type(model).__name__}"
    blank = torch.zeros(1, 3, *size, device=amp.device)
    try:
        with evaluating(model), torch.no_grad(), amp.autocast():
            logits = to_output(model(blank))
    except InputError:
        raise
    except Exception as error:  # whatever a user's forward raises
        raise bad(f"{name} on an image [1, 3, {size[0]}, {size[1]}]", first_line(error), "logits") from error
    if logits.primary.shape[1] != num_classes:
        raise bad(f"output of {name}", f"{logits.primary.shape[1]} classes", f"the data's {num_classes}")
    if auxiliary_head is not None and logits.auxiliary is None:
        raise bad(
            name,
            "one head",
            f"an auxiliary head too, for {auxiliary_head}: (primary, auxiliary) or a dict with 'out' and 'aux'",
        )


def compile_backbones(networks: Iterable[nn.Module], memory: MemoryConfig, device: torch.device) -> None:
    """Compile the backbone of each of ``networks`` in its place; losses stay the same up to rounding.

    It compiles in the first steps, once for each size of images. Copies of a network (teachers, averages) are not
    compiled.

    Raises:
        InputError: a network without a backbone of udas_fast, checkpointing or micro-batches, or no working compiler.
    """
    backbones = []
    for network in networks:
        backbone = getattr(network, "backbone", None)
        if not isinstance(backbone, Backbone):
            raise bad(
                "compile", f"{type(network).__name__} without a backbone of udas_fast", "compile: false"
            )
        backbones.append(backbone)
    if memory.checkpointing != "none" or memory.micro_batch_size is not None:
        # Parts that run again do so by closures, which torch.compile is not made for.
        found = f"checkpointing {memory.checkpointing!r}, micro_batch_size {memory.micro_batch_size}"
        raise bad("compile", found, "memory.checkpointing none and no micro_batch_size")
    _try_compiler(device)
    for backbone in backbones:
        backbone.compile()


def _try_compiler(device: torch.device) -> None:
    """Compile a line, so that a missing compiler is reported before the first step."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(1, device=device))
    except Exception as error:  # whatever inductor, Triton or the C++ compiler raise
        needs = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        raise bad(
            "compile", f"none that works ({first_line(error):.200})", f"{needs}, or compile: false"
        ) from error
