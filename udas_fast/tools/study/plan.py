"""Plans of studies: which runs a study consists of. Plain data, the same for the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from udas_fast.data.domains import DataConfig
from udas_fast.data.loader import AnyEngine
from udas_fast.errors import bad, unknown
from udas_fast.objectives.mixing import Translate
from udas_fast.recipes import Changes, Recipe, all_recipes, get_recipe, load_recipe, override
from udas_fast.recipes.methods import method_files
from udas_fast.tools.study.settings import check_settings, reaching

Study: TypeAlias = Literal["ablation", "labels", "methods"]
STUDIES = get_args(Study)

# Rows of the methods study, from the simplest to the whole; recipes that are not named here come last.
ORDER = (
    *("no_adaptation", "adaptsegnet_single", "adaptsegnet", "minent", "advent", "seg_uncertainty", "fda"),
    *("cycada", "uda", "dacs", "daformer", "mic", "supervised", "joint", "fixmatch", "udas", "ddm"),
    "online_self_training",
)
# Recipes whose source is translated as the task says (True) or not at all (False), as in the other studies. All other
# recipes keep their own translation.
TRANSLATED = {
    "no_adaptation": False,
    "uda": False,
    "udas": True,
    "supervised": False,
    "joint": False,
    "cycada": True,
}
NO_CYCADA = (
    "CyCADA is left out: it trains on images that CycleGAN has translated (`--translate translated:DIR`)"
)


@dataclass(frozen=True)
class Task:
    """Datasets and options that all runs of a study share."""

    source: str  # KIND:ROOT
    target: str
    translate: str = "lab"  # a value of an objective's translate, or translated:DIR, a source in its place
    changes: Changes = field(default_factory=Changes)  # of the size, length, … of every recipe
    # KEY=VALUE goes to the recipes that have the key, RECIPE[,RECIPE]:KEY=VALUE to these recipes.
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
class StudyRow:
    """One line of a study's table: a recipe, its number of labels, and whether the source is translated."""

    title: str
    recipe: str
    num_labels: int = 0
    translated: bool | None = False  # True: as the task says; None: as the recipe says
    file: str | None = None  # of the recipe, where it is not the package's
    target: str | None = None  # KIND:ROOT, where it is not the task's

    def load(self) -> Recipe:
        """Return the recipe with its own numbers."""
        return get_recipe(self.recipe) if self.file is None else load_recipe(Path(self.file))


@dataclass(frozen=True)
class StudyRun:
    """One training: a row at a seed. Runs with the same :attr:`folder` are the same run in every study."""

    row: StudyRow
    task: Task
    seed: int
    start: StudyRun | None = None  # made before this one, which begins with its model

    @property
    def folder(self) -> str:
        """Name of its folder under ``runs/``."""
        translation = self.task.translation if self.row.translated else "none"
        parts = [self.row.recipe, *([translation] if translation != "none" else [])]
        parts += [f"{self.row.num_labels}-labels"] if self.row.num_labels else []
        parts += [self.row.target.partition(":")[0]] if self.row.target else []
        return "-".join([*parts, f"seed-{self.seed}"])

    @property
    def settings(self) -> tuple[str, ...]:
        """``KEY=VALUE`` of the recipe: the task's settings, then those of the row."""
        recipe = self.row.load()
        settings = reaching(self.task.settings, recipe)
        if self.row.translated is None:
            return tuple(settings)
        translate = self.task.translate if self.row.translated else "none"
        for stage in recipe.stages:
            if "source" in stage.objective.requirements.streams:
                key = f"stages.{stage.name}.objective.translate"
                settings.append(f"{key}={'none' if ':' in translate else translate}")
        return tuple(settings)

    @property
    def target(self) -> str:
        """KIND:ROOT of the target images."""
        return self.row.target or self.task.target

    @property
    def data(self) -> DataConfig:
        """Datasets of the run."""
        source = None
        if "source" in self.row.load().streams[0]:
            is_folder = self.row.translated and self.task.translation == "translated"
            source = self.task.translate if is_folder else self.task.source
        return DataConfig(source, self.target, self.row.num_labels, engine=self.task.engine)

    @property
    def changes(self) -> Changes:
        """Changes of the recipe: the task's, as far as they are for its streams."""
        return self.task.changes.for_recipe(self.row.load())

    def recipe(self) -> Recipe:
        """Return the recipe with all settings, as the run trains it."""
        return override(self.changes.apply(self.row.load()), self.settings)

    def command(self, out: str) -> list[str]:
        """Return the command line that makes the run in folder ``out``."""
        task, data = self.task, self.data
        recipe = [self.row.recipe] if self.row.file is None else ["--recipe", self.row.file]
        words = ["udas-fast", "train", *recipe]
        for file in method_files(self.row.load()):
            words += ["--method-file", file]
        words += ["--source", data.source] if data.source else []
        words += ["--target", self.target, "--num-labels", str(data.num_labels), "--seed", str(self.seed)]
        words += [*self.changes.options(), "--engine", task.engine, "--device", task.device]
        words += ["--weights", task.weights] if task.weights else []
        words += ["--from", str(Path(out).parent / self.start.folder)] if self.start else []
        return [*words, *(word for s in self.settings for word in ("--set", s)), "--out", out]


@dataclass(frozen=True)
class StudyPlan:
    """A study: its rows in the table's order, and the runs, all rows of a seed before the next seed's."""

    study: Study
    task: Task
    rows: tuple[StudyRow, ...]
    runs: tuple[StudyRun, ...]
    # Optimisation steps of the network that each run scores; None: each recipe's own number.
    steps: int | None
    left_out: str = ""  # a row that readers may expect, and why it is missing


def plan_study(study: Study, task: Task, *, seeds: Sequence[int], num_labels: Sequence[int]) -> StudyPlan:
    """Plan the runs of ``study`` on ``task``.

    ``num_labels`` are numbers of labelled target images, which are nested subsets. The ablation takes the first. With
    0 the methods study has the methods without labels.

    Raises:
        InputError: a setting that no recipe of the study has or that does not fit, rows with different numbers of
            steps, the same number twice, a recipe's file that cannot join, or an ablation without a translation.
    """
    if study not in STUDIES:
        raise unknown("study", study, STUDIES)
    _check_task(study, task)
    for name, numbers in (("--seeds", seeds), ("--num-labels", num_labels)):
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            found = ",".join(map(str, numbers)) or "none"
            raise bad(name, found, "different whole numbers from 0, at least one")
    left_out = ""
    if study == "ablation":
        rows = _ablation(num_labels[0])
    elif study == "labels":
        rows = _labels(num_labels)
    else:
        rows = _methods(num_labels, task.recipes, cycada=task.translation == "translated")
        left_out = NO_CYCADA if 0 in num_labels and task.translation != "translated" else ""
    check_settings(study, task.settings, [row.load() for row in rows])
    runs = tuple(StudyRun(row, task, seed) for seed in seeds for row in rows)
    own_lengths = study == "methods" and task.changes.small is None and task.changes.steps is None
    steps = _common_steps(runs[: len(rows)], allow_different=own_lengths)
    return StudyPlan(study, task, rows, runs, steps, left_out)


def _common_steps(runs: Sequence[StudyRun], *, allow_different: bool) -> int | None:
    """Return the number of steps of the scored network in all ``runs``, None where they may differ and do."""
    lengths = {run.row.title: _scored_steps(run.recipe()) for run in runs}
    if len(set(lengths.values())) == 1:
        return next(iter(lengths.values()))
    if not allow_different:
        found = ", ".join(f"{steps} in {title}" for title, steps in lengths.items())
        raise bad("optimisation steps", found, "the same number in every row")
    return None


def _scored_steps(recipe: Recipe) -> int:
    """Return the number of optimisation steps of the network that is scored."""
    scored = recipe.stages[-1].network
    return sum(phase.steps for phase in recipe.phases() if phase.stage.network == scored)


def _ablation(num_labels: int) -> tuple[StudyRow, ...]:
    """Return the rows of UDAS 4.3.1, its last one, which trains on labelled target images, without labels too.

    Before it comes the baseline that has the same labels.
    """
    whole = StudyRow("ST + DA + SSL, 0 labels", "udas", translated=True)
    rows = (
        StudyRow("No adaptation", "no_adaptation"),
        StudyRow("UDA", "uda"),
        StudyRow("ST", "no_adaptation", translated=True),
        StudyRow("ST + UDA", "uda", translated=True),
        whole,
    )
    if not num_labels:
        return rows
    joint = _row(get_recipe("joint").title, "joint", num_labels)
    return (*rows, joint, replace(whole, title=f"ST + DA + SSL, {num_labels} labels", num_labels=num_labels))


def _labels(counts: Sequence[int]) -> tuple[StudyRow, ...]:
    """Return the rows of UDAS 4.3.2 and of Joint, most labels first; the baselines have no row without labels."""
    counts = sorted(counts, reverse=True)
    baselines, udas = [get_recipe("supervised"), get_recipe("joint")], get_recipe("udas")
    rows = [_row(baseline.title, baseline.name, n) for baseline in baselines for n in counts if n]
    rows += [_row(udas.title, udas.name, n) for n in counts]
    return tuple(row if row.num_labels else replace(row, title=f"{row.title}, 0 labels") for row in rows)


def _methods(counts: Sequence[int], files: Sequence[str], *, cycada: bool) -> tuple[StudyRow, ...]:
    """Return a row for each method and each number of labels that it can train with.

    The recipes in :data:`ORDER` come first: all without labels, then all with the most labels, and so on. Each other
    recipe follows with its rows.
    """
    recipes = _candidates(files)
    known = [recipes[name] for name in ORDER if name in recipes and (name != "cycada" or cycada)]
    others = [each for name, each in recipes.items() if name not in ORDER]
    descending = sorted(counts, reverse=True)
    pairs = [(each, n) for n in sorted(descending, key=bool) for each in known]
    pairs += [(each, n) for each in others for n in descending]
    titles = _titles([recipe for recipe, _ in (*known, *others)])
    return tuple(
        _row(titles[recipe.name], recipe.name, n, file)
        for (recipe, file), n in pairs
        if _trains_with(recipe, n)
    )


def _titles(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return a title for each recipe; a copy that kept the title of an earlier one goes by its name."""
    found: dict[str, str] = {}
    for recipe in recipes:
        taken = recipe.title in ("", *found.values())
        found[recipe.name] = title = recipe.name if taken else recipe.title
        if list(found.values()).count(title) > 1:
            raise bad(
                f"recipe {recipe.name}", f"the title {title!r} of another recipe", "a `name` of its own"
            )
    return found


def _row(title: str, recipe: str, num_labels: int, file: str | None = None) -> StudyRow:
    title = f"{title}, {num_labels} labels" if num_labels else title
    return StudyRow(title, recipe, num_labels, TRANSLATED.get(recipe), file)


def _trains_with(recipe: Recipe, num_labels: int) -> bool:
    """Return whether the recipe trains with so many labelled target images: it needs, uses or never sees them."""
    needs, uses = recipe.streams
    return "labelled" in needs | uses if num_labels else "labelled" not in needs


def _candidates(files: Sequence[str]) -> dict[str, tuple[Recipe, str | None]]:
    """Return (recipe, its file) of all recipes for segmentation, and of those in ``files``, by name."""
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
    return found


def _check_task(study: Study, task: Task) -> None:
    if task.translation != "translated" and task.translate not in get_args(Translate):
        raise unknown("--translate", task.translate, [*get_args(Translate), "translated:DIR"])
    if study != "methods" and task.recipes:
        raise bad(
            f"--recipe {task.recipes[0]}", f"the {study} study", "methods, which has a row for any recipe"
        )
    if study == "ablation" and task.translate == "none":
        raise bad("--translate", "none", "a translation, which the rows ST of the ablation measure")
