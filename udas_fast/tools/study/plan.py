"""Which runs a study is made of: pure data, the same for the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from udas_fast.data.domains import DataConfig
from udas_fast.data.loader import AnyEngine
from udas_fast.errors import bad, unknown
from udas_fast.objectives.mixing import Translate
from udas_fast.recipes import Recipe, all_recipes, get_recipe, load_recipe, override, small

Study: TypeAlias = Literal["ablation", "labels", "methods"]
STUDIES = get_args(Study)

# Recipes of the methods study in the table's order: those without target labels, and those with. Others come last.
UNLABELLED = {
    "no_adaptation": "No adaptation",
    "adaptsegnet_single": "AdaptSegNet (one level)",
    "adaptsegnet": "AdaptSegNet",
    "minent": "MinEnt",
    "advent": "AdvEnt",
    "seg_uncertainty": "Seg-Uncertainty",
    "fda": "FDA",
    "cycada": "CyCADA",
    "uda": "UDA",
    "udas": "UDAS",
}
LABELLED = {"supervised": "Supervised", "udas": "UDAS", "ddm": "DDM"}
# Whether they see the source as the task translates it, or as it is; the others do as their recipe says.
TRANSLATED = {"no_adaptation": False, "uda": False, "udas": True, "supervised": False, "cycada": True}
NO_CYCADA = (
    "CyCADA is left out: it trains on images that CycleGAN has translated (`--translate translated:DIR`)"
)


@dataclass(frozen=True)
class Task:
    """What all runs of a study share."""

    source: str  # KIND:ROOT
    target: str
    translate: str = "lab"  # a value of MixingConfig.translate, or translated:DIR, a source in its place
    size: tuple[int, int] | None = None  # with steps: the recipes as `small` makes them; None: full size
    steps: int | None = None
    # KEY=VALUE; stages.NAME.… goes to the recipes that have such a stage, RECIPE[,RECIPE]:KEY=VALUE to these.
    settings: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()  # files of recipes that join the package's in the methods study
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
    translated: bool | None = False  # as the task says; None: as the recipe has it
    file: str | None = None  # of the recipe, where it is not the package's

    def load(self) -> Recipe:
        """The recipe with its own numbers."""
        return get_recipe(self.recipe) if self.file is None else load_recipe(Path(self.file))


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
        stages = {stage.name: stage for stage in self.row.load().stages}
        settings = []
        for names, setting in map(_scope, self.task.settings):
            if self.row.recipe in names or (not names and _stage_of(setting) in {None, *stages}):
                settings.append(setting)
        if self.row.translated is None:
            return tuple(settings)
        translate = self.task.translate if self.row.translated else "none"
        for name, stage in stages.items():
            if "source" in stage.objective.requirements.streams:
                mixes = hasattr(stage.objective, "mixing")
                key = f"stages.{name}.objective.{'mixing.' if mixes else ''}translate"
                settings.append(f"{key}={'none' if ':' in translate else translate}")
        return tuple(settings)

    @property
    def data(self) -> DataConfig:
        """The datasets that the run names."""
        source = None
        if "source" in self.row.load().streams[0]:
            is_folder = self.row.translated and self.task.translation == "translated"
            source = self.task.translate if is_folder else self.task.source
        return DataConfig(source, self.task.target, self.row.labels, engine=self.task.engine)

    def recipe(self) -> Recipe:
        """The recipe with its settings, as the run trains it."""
        chosen = self.row.load()
        if self.task.size is not None:
            chosen = small(chosen, size=self.task.size, steps=self.task.steps)
        return override(chosen, self.settings)

    def command(self, out: str) -> list[str]:
        """The command line that makes the run in folder ``out``."""
        task, data = self.task, self.data
        recipe = [self.row.recipe] if self.row.file is None else ["--recipe", self.row.file]
        words = ["udas-fast", "train", *recipe]
        words += ["--source", data.source] if data.source else []
        words += ["--target", data.target, "--num-labels", str(data.num_labels), "--seed", str(self.seed)]
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
    # Optimisation steps of the network that each run scores; None: each recipe's own number.
    steps: int | None
    left_out: str = ""  # what a reader would look for, and why it is not there


def plan_study(study: Study, task: Task, *, seeds: Sequence[int], labels: Sequence[int]) -> Plan:
    """The runs of ``study`` on ``task``.

    ``labels``: numbers of labelled target images, nested subsets; the ablation takes the first, and 0 asks the
    methods study for the methods without labels.

    Raises:
        InputError: a setting that no recipe of the study has or that does not fit, rows of different lengths,
            the same number twice, a recipe's file that cannot join, or nothing to translate with in an ablation.
    """
    if study not in STUDIES:
        raise unknown("study", study, STUDIES)
    _check_task(study, task)
    for name, numbers in (("--seeds", seeds), ("--num-labels", labels)):
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            found = ",".join(map(str, numbers)) or "none"
            raise bad(name, found, "different whole numbers from 0, at least one")
    left_out = ""
    if study == "ablation":
        rows = _ablation(labels[0])
    elif study == "labels":
        rows = _labels(labels)
    else:
        rows = _methods(labels, task.recipes, cycada=task.translation == "translated")
        left_out = NO_CYCADA if 0 in labels and task.translation != "translated" else ""
    _check_settings(study, task.settings, rows)
    runs = tuple(Run(row, task, seed) for seed in seeds for row in rows)
    lengths = {run.row.title: _steps(run.recipe()) for run in runs[: len(rows)]}
    steps = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
        if study != "methods" or task.steps is not None:
            found = ", ".join(f"{steps} in {title}" for title, steps in lengths.items())
            raise bad("optimisation steps", found, "the same number in every row")
        steps = None  # the published numbers
    return Plan(study, task, rows, runs, steps, left_out)


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


def _methods(counts: Sequence[int], files: Sequence[str], *, cycada: bool) -> tuple[Row, ...]:
    """Every method at its own numbers, and UDAS's rows as in the other studies; what is not in the table last."""
    names = [name for name in UNLABELLED if name != "cycada" or cycada] if 0 in counts else []
    unlabelled = [Row(UNLABELLED[name], name, translated=TRANSLATED.get(name)) for name in names]
    labelled = [
        Row(f"{title}, {n} labels", name, n, TRANSLATED.get(name))
        for n in sorted(filter(None, counts), reverse=True)
        for name, title in LABELLED.items()
    ]
    others = [_other(recipe, file, counts) for recipe, file in _joining(files)]
    return (*unlabelled, *labelled, *(row for rows in others for row in rows))


def _joining(files: Sequence[str]) -> list[tuple[Recipe, str | None]]:
    """(recipe, its file): the package's that have no row of their own in the tables above, and those in ``files``."""
    found: dict[str, tuple[Recipe, str | None]] = {
        name: (recipe, None) for name, recipe in all_recipes().items() if recipe.trains == "segmentation"
    }
    for file in files:
        recipe = load_recipe(Path(file))
        if recipe.trains != "segmentation":
            raise bad(f"--recipe {file}", f"one that trains {recipe.trains}", "one for segmentation")
        if recipe.name in found:
            raise bad(
                f"--recipe {file}", f"the name {recipe.name!r} of another recipe", "a `name` of its own"
            )
        found[recipe.name] = recipe, file
    return [each for name, each in found.items() if name not in {*UNLABELLED, *LABELLED}]


def _other(recipe: Recipe, file: str | None, counts: Sequence[int]) -> list[Row]:
    """The rows of a recipe by what it does with target labels: needs them, uses them where given, or neither."""
    needs, uses = recipe.streams
    fitting = [n for n in sorted(counts) if ("labelled" in needs | uses if n else "labelled" not in needs)]
    return [
        Row(f"{recipe.name}, {n} labels" if n else recipe.name, recipe.name, n, None, file)
        for n in reversed(fitting)
    ]


def _check_settings(study: Study, settings: Sequence[str], rows: Sequence[Row]) -> None:
    """Every setting is for a recipe of the study, and its stage is of one of them."""
    names = {row.recipe for row in rows}
    stages = {stage.name for row in rows for stage in row.load().stages}
    for scope, setting in map(_scope, settings):
        for name in scope:
            if name not in names:
                get_recipe(name)
        if scope and not names & set(scope):
            raise unknown(f"--set {setting}: recipe of the {study} study", scope[0], names)
        if (stage := _stage_of(setting)) not in {None, *stages}:
            raise unknown(f"--set {setting}: stage of the {study} study", stage, stages)


def _check_task(study: Study, task: Task) -> None:
    if (task.size is None) != (task.steps is None):
        raise bad("--small and --steps", "one of them", "both or neither")
    if task.translation != "translated" and task.translate not in get_args(Translate):
        raise unknown("--translate", task.translate, [*get_args(Translate), "translated:DIR"])
    if study != "methods" and task.recipes:
        raise bad(
            f"--recipe {task.recipes[0]}", f"the {study} study", "methods, which has a row for any recipe"
        )
    if study == "ablation" and task.translate == "none":
        raise bad("--translate", "none", "a translation, which is what the rows ST of the ablation are about")


def _scope(setting: str) -> tuple[list[str], str]:
    """(recipes, ``KEY=VALUE``) of ``RECIPE[,RECIPE]:KEY=VALUE``; no recipes where none are named."""
    key = setting.partition("=")[0]
    names, colon, _ = key.partition(":")
    return (names.split(","), setting[len(names) + 1 :]) if colon else ([], setting)


def _stage_of(setting: str) -> str | None:
    """NAME of ``stages.NAME.…=VALUE``; None where the setting is for every recipe."""
    first, _, rest = setting.partition("=")[0].partition(".")
    return rest.partition(".")[0] if first == "stages" else None


def _steps(recipe: Recipe) -> int:
    """Optimisation steps of the network that is scored."""
    scored = recipe.stages[-1].network
    return sum(stage.steps * stage.rounds for stage in recipe.stages if stage.network == scored)
