"""What a recipe is: frozen data that names objectives, stages and numbers; and its YAML form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, field, replace
from dataclasses import dataclass as plain_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from udas_fast.data import Geometry
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.errors import InputError, bad, problem, unknown
from udas_fast.models import ModelConfig
from udas_fast.objectives import STRICT, objective_configs

AnyObjective = Annotated[reduce(or_, objective_configs()), Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class RareClassConfig:
    """Source images by the classes that they show (:class:`udas_fast.data.RareClasses`)."""

    temperature: Annotated[float, Field(gt=0)] = 0.01  # DAFormer
    min_pixels: Annotated[int, Field(gt=0)] = 3000  # DAFormer, of the 1914 × 1052 of GTA5
    min_crop_ratio: Annotated[float, Field(ge=0)] = 0.5  # DAFormer: a crop shows more than this share of them


@dataclass(frozen=True, config=STRICT)
class StreamBatchSize:
    """Batch sizes of single streams, over all processes; None: :attr:`InputConfig.batch_size`."""

    source: Annotated[int, Field(gt=0)] | None = None
    labelled: Annotated[int, Field(gt=0)] | None = None
    unlabelled: Annotated[int, Field(gt=0)] | None = None


@dataclass(frozen=True, config=STRICT)
class InputConfig:
    """What the network is shown. Labelled target images that are mixed with the source take its geometry."""

    source: Geometry = field(default_factory=lambda: Geometry(size=(720, 1280)))  # AdaptSegNet
    target: Geometry = field(default_factory=lambda: Geometry(size=(512, 1024)))  # AdaptSegNet
    batch_size: Annotated[int, Field(gt=0)] = 1  # of each stream in a step, over all processes
    stream_batch_size: StreamBatchSize = field(default_factory=StreamBatchSize)  # of streams that differ
    rare_classes: RareClassConfig | None = None  # None: each source image once an epoch

    def batch_size_of(self, stream: str) -> int:
        """Return how many images of ``stream`` a step takes, over all processes."""
        return getattr(self.stream_batch_size, stream) or self.batch_size

    def per_process(self, processes: int) -> InputConfig:
        """Return this configuration with each process's part of the batches."""
        parts = {
            name: size and max(1, size // processes) for name, size in asdict(self.stream_batch_size).items()
        }
        return replace(
            self, batch_size=max(1, self.batch_size // processes), stream_batch_size=StreamBatchSize(**parts)
        )


@dataclass(frozen=True, config=STRICT)
class Stage:
    """``rounds`` runs of ``steps`` optimisation steps of one objective, each with its own schedule."""

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$", max_length=100)]  # it names folders and files
    objective: AnyObjective
    steps: Annotated[int, Field(gt=0)]
    rounds: Annotated[int, Field(gt=0)] = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # Which network it trains. All of a run begin with the same weights; the last stage's is the run's model.
    network: str = "main"


class StageRounds(Protocol):
    """A stage's name and its lengths, which a full :class:`Stage` and one read from a run's file have."""

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def rounds(self) -> int: ...


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


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Which objectives, in which stages, with which numbers."""

    name: Annotated[str, Field(pattern=r"^\w[\w .+-]*$", max_length=100)]
    summary: str
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    model: ModelConfig = field(default_factory=ModelConfig)
    input: InputConfig = field(default_factory=InputConfig)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False  # the backbones by torch.compile, which takes its time in the first steps
    cuda_graphs: bool = False  # forwards, losses and backwards of a step recorded once and replayed
    # Decay of an average of the weights, begun anew in every round: what is scored, saved and the next round's
    # teacher and start; Mean Teacher and DACS: 0.99. None: the last weights. Costs one more copy of the network.
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    title: str = ""  # the method's name in tables; empty: the recipe's name
    paper: str = ""  # where the method comes from
    published: str = ""  # the score that its authors report, with the task
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"stages: found two of the name {twice[0]!r}, expected names that differ")
        if len({stage.objective.trains for stage in self.stages}) > 1:
            raise ValueError("stages: found segmentation and translation, expected one of them")
        for name in ("compile", "cuda_graphs"):
            if getattr(self, name) and self.trains == "translation":
                raise ValueError(f"{name}: found true for a translation, expected false")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as YAML holds it."""
        return _ADAPTER.dump_python(self, mode="json")

    def to_yaml(self) -> str:
        """What :func:`load_recipe` reads back."""
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

    @property
    def trains(self) -> str:
        """What its model is: "segmentation" or "translation"."""
        return self.stages[0].objective.trains

    @property
    def streams(self) -> tuple[set[str], set[str]]:
        """(needed, used where present) over all stages."""
        needs = {name for stage in self.stages for name in stage.objective.needs}
        uses = {name for stage in self.stages for name in stage.objective.uses}
        return needs, uses - needs

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Batch size of each stream that a stage may use, over all processes."""
        return {name: self.input.batch_size_of(name) for name in sorted(set().union(*self.streams))}


_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def recipe_from_dict(data: object, origin: str = "recipe") -> Recipe:
    """The recipe that ``data`` describes.

    Raises:
        InputError: names the first key that is unknown (with the nearest valid one), missing or wrong.
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise _sentence(error, origin) from None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML (safe loader).

    Raises:
        InputError: no such file, not YAML, or :func:`recipe_from_dict`'s reasons.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe file {path}: not valid YAML ({str(error).splitlines()[0]})") from error
    return recipe_from_dict(data, f"recipe file {path}")


def select_stages(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """``recipe`` with the stages ``names`` alone, in the recipe's order.

    Raises:
        InputError: a name that no stage has.
    """
    stages = {stage.name: stage for stage in recipe.stages}
    expected = list(names)
    for name in expected:
        if name not in stages:
            raise unknown(f"stage of {recipe.name}", name, stages)
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.name in expected))


def _sentence(error: ValidationError, origin: str) -> InputError:
    errors = error.errors()
    # A misspelt key that has to be there is two errors: this one says what to do.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    # pydantic's path holds the objective's kind as a step of its own; the user's file has no such key.
    kinds = {config.kind for config in objective_configs()}
    path = [str(part) for part in first["loc"] if part not in kinds]
    key = re.sub(r"\.(\d+)", r"[\1]", ".".join(path)) or "the whole"
    if first["type"] == "unexpected_keyword_argument":
        return unknown(f"{origin}: key {key}", path[-1], _fields_near(first["loc"][:-1]))
    if first["type"] == "union_tag_invalid":
        return unknown(f"{origin}: {key}.kind", first["ctx"]["tag"], kinds)
    if first["type"] == "tuple_type":
        return bad(f"{origin}: {key}", repr(first["input"]), "a list such as [512, 512]")
    return InputError(f"{origin}: {problem(key, first)}")


def _fields_near(loc: Sequence[int | str]) -> list[str]:
    """Field names of the dataclass at a validation path."""
    kinds = {config.kind: config for config in objective_configs()}
    node: type = Recipe
    for part in loc:
        if part in kinds:
            node = kinds[part]
        elif isinstance(part, str) and part != "objective":
            kind = node.__pydantic_fields__[part].annotation
            # A field that may be None is a union.
            node = Stage if part == "stages" else next(iter(get_args(kind)), kind)
    return list(node.__pydantic_fields__)
