"""Recipes: frozen tables of methods, stages and numbers, and their YAML form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import yaml
from pydantic import Field, PlainSerializer, PlainValidator

from udas_fast.config import Weight, config_dataclass, from_dict, load_yaml, to_dict
from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.errors import InputError, bad, first_line, unknown
from udas_fast.models import ModelConfig
from udas_fast.objectives import ObjectiveConfig, objective_kinds
from udas_fast.objectives.base import StreamName, check_config


def _objective(value: object) -> ObjectiveConfig:
    """Return ``value``, a configuration of the package's or of a user's own method."""
    if not isinstance(value, ObjectiveConfig):
        raise InputError(f"found {type(value).__name__}, expected a configuration such as AdaptationConfig()")
    check_config(value)
    return value


def _objective_to_dict(objective: ObjectiveConfig) -> dict[str, Any]:
    return {"kind": objective.kind, **to_dict(objective)}


def objective_from_dict(data: object, origin: str) -> ObjectiveConfig:
    """Return the configuration of the registered ``kind`` in ``data``.

    Raises:
        InputError: no such kind, or a key that is unknown, missing or wrong, named after ``origin``.
    """
    if isinstance(data, ObjectiveConfig):
        return data
    if not isinstance(data, dict):
        raise bad(origin, repr(data), "a mapping with kind and the method's own keys")
    kinds = objective_kinds()
    kind = data.get("kind")
    if kind is None:
        raise bad(f"{origin}.kind", "none", f"one of {', '.join(sorted(kinds))}")
    if not isinstance(kind, str) or kind not in kinds:
        hint = "; `--method-file FILE` loads a method of your own"
        error = unknown(f"{origin}.kind", str(kind), kinds)
        raise InputError(f"{error}{hint}")
    return from_dict(kinds[kind], {key: value for key, value in data.items() if key != "kind"}, origin)


# A user's own class is no part of pydantic's schema: instances are taken as they are, dicts are read by kind.
AnyObjective = Annotated[
    ObjectiveConfig, PlainValidator(_objective), PlainSerializer(_objective_to_dict, return_type=dict)
]


MOST_ROUNDS = 1000


@config_dataclass
class Stage:
    """``rounds`` runs of ``steps`` optimisation steps of one objective, each with its own schedule."""

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$", max_length=100)]  # it names folders and files
    objective: AnyObjective
    steps: Annotated[int, Field(gt=0, le=10**9)]
    rounds: Annotated[int, Field(gt=0, le=MOST_ROUNDS)] = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # The network that it trains. All of a run begin with the same weights; the last stage's is the run's model.
    network: str = "main"
    # Architecture of that network; None: the recipe's. One of its own begins with random weights, or those of `hf`.
    model: ModelConfig | None = None


class StageRounds(Protocol):
    """A stage's name and its lengths, which a full :class:`Stage` and one read from a run's file have."""

    @property
    def name(self) -> str:
        """Name of the stage."""
        ...

    @property
    def steps(self) -> int:
        """Steps of a round."""
        ...

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        ...


StageT = TypeVar("StageT", bound=StageRounds)


def enumerate_rounds(stages: Iterable[StageT]) -> Iterator[tuple[StageT, int, str, int]]:
    """Yield (stage, round, name of the phase, number of steps before it) for the rounds of ``stages`` in order."""
    first_step = 0
    for stage in stages:
        for index in range(stage.rounds):
            name = stage.name if stage.rounds == 1 else f"{stage.name}.{index + 1}"
            yield stage, index, name, first_step
            first_step += stage.steps


@plain_dataclass(frozen=True)
class Phase:
    """One round of one stage: the unit that is trained, checkpointed at its end and scored."""

    name: str
    stage: Stage
    round: int
    first_step: int
    """Number of optimisation steps of the run before this phase."""

    @property
    def steps(self) -> int:
        """Number of optimisation steps of this phase."""
        return self.stage.steps


@config_dataclass
class Recipe:
    """Objectives, stages and numbers of a method."""

    name: Annotated[str, Field(pattern=r"^\w[\w .+-]*$", max_length=100)]
    summary: str
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    # CycleGAN, trained before the first stage, whose images of the source all stages then read (UDAS 3.2).
    translation: Recipe | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    input: InputConfig = field(default_factory=InputConfig)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False  # the backbones by torch.compile, which takes its time in the first steps
    cuda_graphs: bool = False  # forwards, losses and backwards of a step recorded once and replayed
    # Decay of an average of the weights, begun anew in every round: what is scored, saved and the next round's
    # teacher and start; Mean Teacher and DACS: 0.99. None: the last weights. Costs one more copy of the network.
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    # Factors of the classes in the cross-entropy of labelled images: "balanced" (1 / ln(1.02 + share), ENet), or one
    # for each class. None: all count alike.
    class_weights: Literal["balanced"] | Annotated[tuple[Weight, ...], Field(min_length=2)] | None = None
    title: str = ""  # the method's name in tables; empty: the recipe's name
    paper: str = ""  # where the method comes from
    published: str = ""  # the score that its authors report, with the task
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise bad("stages", f"two of the name {twice[0]!r}", "names that differ")
        if self.translation is not None and (
            self.translation.trains != "translation" or self.trains == "translation"
        ):
            raise bad("translation", f"recipe {self.translation.name}", "one that trains CycleGAN, or null")
        if len({stage.objective.requirements.model for stage in self.stages}) > 1:
            raise bad("stages", "segmentation and translation", "one of them")
        for network in {stage.network for stage in self.stages}:
            if len({stage.model for stage in self.stages if stage.network == network}) > 1:
                raise bad(
                    f"model of stages with network {network!r}", "several", "one, the same in each of them"
                )
        for name in ("compile", "cuda_graphs"):
            if getattr(self, name) and self.trains == "translation":
                raise bad(name, "true for a translation", "false")
        if self.class_weights is not None and self.trains == "translation":
            raise bad("class_weights", "some for a translation", "none, as it learns no classes")
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise bad("class_weights", "0 for every class", "one above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as YAML holds it."""
        return to_dict(self)

    def to_yaml(self) -> str:
        """Return the YAML that :func:`load_recipe` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def phases(self) -> tuple[Phase, ...]:
        """Return the rounds of all stages in order; the only source of their names and of step counts."""
        return tuple(
            Phase(name, stage, index, first_step)
            for stage, index, name, first_step in enumerate_rounds(self.stages)
        )

    @property
    def steps(self) -> int:
        """Number of optimisation steps of the whole run."""
        return sum(stage.steps * stage.rounds for stage in self.stages)

    def geometries(self, stage: Stage) -> dict[StreamName, Geometry]:
        """Return the geometry of each stream that ``stage`` may read."""
        requirements = stage.objective.requirements
        inputs = {"source": self.input.source, "target": self.input.target}
        names = (*requirements.streams, *requirements.optional_streams)
        return {name: inputs[requirements.geometry(name)] for name in names}

    @property
    def trains(self) -> Literal["segmentation", "translation"]:
        """Kind of the networks: "segmentation" or "translation"."""
        return self.stages[0].objective.requirements.model

    def model_of(self, network: str) -> ModelConfig:
        """Return the architecture of the network that stages call ``network``."""
        return next((s.model for s in self.stages if s.network == network and s.model), self.model)

    @property
    def batch_sizes(self) -> dict[StreamName, int]:
        """Batch size of each stream that a stage may use, over all processes."""
        return {name: self.input.batch_size_of(name) for name in sorted(set().union(*self.streams))}

    @property
    def streams(self) -> tuple[set[StreamName], set[StreamName]]:
        """Streams that must be there and streams that are used where given, over all stages."""
        requirements = [stage.objective.requirements for stage in self.stages]
        needed = {name for each in requirements for name in each.streams}
        optional = {name for each in requirements for name in each.optional_streams}
        return needed, optional - needed


def recipe_from_dict(data: object, origin: str = "recipe") -> Recipe:
    """Return the recipe that ``data`` describes.

    Raises:
        InputError: names the first key that is unknown (with the nearest valid one), missing or wrong.
    """
    if isinstance(data, dict) and isinstance(data.get("stages"), list):
        stages = [_with_objective(stage, f"{origin}: stages[{i}]") for i, stage in enumerate(data["stages"])]
        data = {**data, "stages": stages}
    if isinstance(data, dict) and isinstance(data.get("translation"), dict):
        data = {**data, "translation": recipe_from_dict(data["translation"], f"{origin}: translation")}
    return from_dict(Recipe, data, origin)


def _with_objective(stage: object, origin: str) -> object:
    if not isinstance(stage, dict) or "objective" not in stage:
        return stage
    return {**stage, "objective": objective_from_dict(stage["objective"], f"{origin}.objective")}


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML (safe loader).

    Raises:
        InputError: no such file, not YAML, or :func:`recipe_from_dict`'s reasons.
    """
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"recipe file {path}: not valid YAML ({first_line(error)})") from error
    return recipe_from_dict(data, f"recipe file {path}")


def select_stages(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """Return ``recipe`` with the stages ``names`` alone, in the recipe's order.

    Raises:
        InputError: a name that no stage has.
    """
    stages = {stage.name: stage for stage in recipe.stages}
    expected = list(names)
    for name in expected:
        if name not in stages:
            raise unknown(f"stage of {recipe.name}", name, stages)
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.name in expected))
