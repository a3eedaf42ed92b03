"""Which runs a study is made of: pure data, the same for the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from udas_fast.data.loader import AnyEngine
from udas_fast.errors import bad, unknown
from udas_fast.objectives.mixing import Translate
from udas_fast.recipes import Recipe, get_recipe, override, small
from udas_fast.recipes.domains import DataConfig

Study: TypeAlias = Literal["ablation", "labels"]
STUDIES = get_args(Study)


@dataclass(frozen=True)
class Task:
    """What all runs of a study share."""

    source: str  # KIND:ROOT
    target: str
    translate: str = "lab"  # a value of MixingConfig.translate, or translated:DIR, a source in its place
    size: tuple[int, int] | None = None  # with steps: the recipes as `small` makes them; None: full size
    steps: int | None = None
    settings: tuple[str, ...] = ()  # KEY=VALUE; stages.NAME.… goes to the recipes that have such a stage
    engine: AnyEngine = "auto"
    weights: str | None = None
    device: str = "auto"

    @property
    def translation(self) -> str:
        """``none``, ``lab``, …, or ``translated`` where the source is a folder of translated images."""
        return self.translate.partition(":")[0]


@dataclass(frozen=True)
class Row:
    """One line of a study's table: a recipe, its labels, and whether the source is translated."""

    title: str
    recipe: str
    labels: int = 0
    translated: bool = False


@dataclass(frozen=True)
class Run:
    """One training: a row at a seed. Runs of one :attr:`folder` are the same run, whatever the study."""

    row: Row
    task: Task
    seed: int

    @property
    def folder(self) -> str:
        """Its name under ``runs/``."""
        translation = self.task.translation if self.row.translated else "none"
        parts = [self.row.recipe, *([translation] if translation != "none" else [])]
        parts += [f"{self.row.labels}-labels"] if self.row.labels else []
        return "-".join([*parts, f"seed-{self.seed}"])

    @property
    def settings(self) -> tuple[str, ...]:
        """``KEY=VALUE`` of the recipe: the task's, then those that make the row what it is."""
        stages = {stage.name: stage for stage in get_recipe(self.row.recipe).stages}
        settings = [s for s in self.task.settings if _stage_of(s) in {None, *stages}]
        translate = self.task.translate if self.row.translated else "none"
        for name, stage in stages.items():
            if "source" in stage.objective.needs:
                mixes = hasattr(stage.objective, "mixing")
                key = f"stages.{name}.objective.{'mixing.' if mixes else ''}translate"
                settings.append(f"{key}={'none' if ':' in translate else translate}")
        return tuple(settings)

    @property
    def data(self) -> DataConfig:
        """The datasets that the run names."""
        source = None
        if "source" in get_recipe(self.row.recipe).streams[0]:
            is_folder = self.row.translated and self.task.translation == "translated"
            source = self.task.translate if is_folder else self.task.source
        return DataConfig(source, self.task.target, self.row.labels, engine=self.task.engine)

    def recipe(self) -> Recipe:
        """The recipe with its settings, as the run trains it."""
        chosen = get_recipe(self.row.recipe)
        if self.task.size is not None:
            chosen = small(chosen, size=self.task.size, steps=self.task.steps)
        return override(chosen, self.settings)

    def command(self, out: str) -> list[str]:
        """The command line that makes the run in folder ``out``."""
        task, data = self.task, self.data
        words = ["udas-fast", "train", self.row.recipe]
        words += ["--source", data.source] if data.source else []
        words += ["--target", data.target, "--labels", str(data.labels), "--seed", str(self.seed)]
        if task.size is not None:
            words += ["--small", "{}x{}".format(*task.size), "--steps", str(task.steps)]
        words += ["--engine", task.engine, "--device", task.device]
        words += ["--weights", task.weights] if task.weights else []
        return [*words, *(word for s in self.settings for word in ("--set", s)), "--out", out]


@dataclass(frozen=True)
class Plan:
    """A study: its rows in the table's order, and the runs, all rows of a seed before the next seed's."""

    study: Study
    task: Task
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    steps: int  # optimisation steps of every run


def plan_study(study: Study, task: Task, *, seeds: Sequence[int], labels: Sequence[int]) -> Plan:
    """The runs of ``study`` on ``task``.

    ``labels``: numbers of labelled target images, nested subsets; the ablation takes the first.

    Raises:
        InputError: a setting that no recipe of the study has or that does not fit, rows of different lengths,
            the same number twice, or nothing to translate with in an ablation.
    """
    if study not in STUDIES:
        raise unknown("study", study, STUDIES)
    _check_task(study, task)
    for name, numbers in (("--seeds", seeds), ("--labels", labels)):
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            found = ",".join(map(str, numbers)) or "none"
            raise bad(name, found, "different whole numbers from 0, at least one")
    rows = _ablation(labels[0]) if study == "ablation" else _labels(labels)
    stages = {s.name for row in rows for s in get_recipe(row.recipe).stages}
    for setting in task.settings:
        if (stage := _stage_of(setting)) not in {None, *stages}:
            raise unknown(f"--set {setting}: stage of the {study} study", stage, stages)
    runs = tuple(Run(row, task, seed) for seed in seeds for row in rows)
    lengths = {run.row.title: _steps(run.recipe()) for run in runs[: len(rows)]}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{steps} in {title}" for title, steps in lengths.items())
        raise bad("optimisation steps", found, "the same number in every row")
    return Plan(study, task, rows, runs, next(iter(lengths.values())))


def _ablation(labels: int) -> tuple[Row, ...]:
    """The rows of UDAS 4.3.1; its last one trains on labelled target images, so it is here without as well."""
    whole = Row("ST + DA + SSL, 0 labels", "udas", translated=True)
    rows = (
        Row("No adaptation", "no_adaptation"),
        Row("UDA", "uda"),
        Row("ST", "no_adaptation", translated=True),
        Row("ST + UDA", "uda", translated=True),
        whole,
    )
    if not labels:
        return rows
    return (*rows, replace(whole, title=f"ST + DA + SSL, {labels} labels", labels=labels))


def _labels(counts: Sequence[int]) -> tuple[Row, ...]:
    """The rows of UDAS 4.3.2: without labels there is nothing to supervise."""
    counts = sorted(counts, reverse=True)
    supervised = [Row(f"Supervised, {n} labels", "supervised", n) for n in counts if n]
    return (*supervised, *(Row(f"UDAS, {n} labels", "udas", n, translated=True) for n in counts))


def _check_task(study: Study, task: Task) -> None:
    if (task.size is None) != (task.steps is None):
        raise bad("--small and --steps", "one of them", "both or neither")
    if task.translation != "translated" and task.translate not in get_args(Translate):
        raise unknown("--translate", task.translate, [*get_args(Translate), "translated:DIR"])
    if study == "ablation" and task.translate == "none":
        raise bad("--translate", "none", "a translation, which is what the rows ST of the ablation are about")


def _stage_of(setting: str) -> str | None:
    """NAME of ``stages.NAME.…=VALUE``; None where the setting is for every recipe."""
    first, _, rest = setting.partition("=")[0].partition(".")
    return rest.partition(".")[0] if first == "stages" else None


def _steps(recipe: Recipe) -> int:
    return sum(stage.steps * stage.rounds for stage in recipe.stages)
