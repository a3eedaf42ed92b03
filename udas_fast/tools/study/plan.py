"""Plans of studies: which runs a study consists of. Plain data, the same for the same arguments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from udas_fast.data.domains import DataConfig
from udas_fast.data.identity import absolute
from udas_fast.errors import bad, unknown
from udas_fast.objectives.mixing import Translate
from udas_fast.recipes import Changes, Recipe, get_recipe, override, select_stages
from udas_fast.recipes.cyclegan import small_cyclegan
from udas_fast.recipes.methods import method_files
from udas_fast.tools.study import paper
from udas_fast.tools.study.rows import STUDIES, Study, StudyRow, Task, study_rows
from udas_fast.tools.study.settings import check_settings, naming, reaching


@dataclass(frozen=True)
class TranslationRun:
    """CycleGAN's translation of a task's source, which the rows with a translation train on."""

    task: Task

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.task.translate.partition(":")[2])

    @property
    def data(self) -> DataConfig:
        """Datasets of the run."""
        return DataConfig(self.task.source, self.task.target)

    @property
    def settings(self) -> list[str]:
        """``KEY=VALUE`` of the task's settings that name recipe cyclegan."""
        return naming(self.task.settings, "cyclegan")

    def recipe(self) -> Recipe:
        """Return recipe cyclegan as the run trains it, with crops of images that are large enough."""
        recipe, small = get_recipe("cyclegan"), self.task.changes.small
        if small is not None:
            recipe = small_cyclegan(recipe, crop=small)
        return override(recipe, self.settings)

    def command(self) -> list[str]:
        """Return the command line that makes the run."""
        task = self.task
        words = ["udas-fast", "translate", "--source", task.source, "--target", task.target]
        words += ["--small", "{}x{}".format(*task.changes.small)] if task.changes.small else []
        words += [word for s in self.settings for word in ("--set", s)]
        return [*words, "--device", task.device, "--out", str(self.folder)]


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
        row = self.row
        translation = self.task.translation if row.translated else "none"
        parts = [row.recipe, *([translation] if translation != "none" else [])]
        parts += [f"{row.num_labels}-labels"] if row.num_labels else []
        parts += [row.target.partition(":")[0]] if row.target else []
        parts += [f"{len(row.stages)}-stages"] if row.stages else []
        parts += map(_slug, row.settings)
        return "-".join([*parts, f"seed-{self.seed}"])

    @property
    def settings(self) -> tuple[str, ...]:
        """``KEY=VALUE`` of the recipe: the task's settings, then those of the row."""
        recipe = self.row.own_recipe
        settings = reaching(self.task.settings, recipe)
        if self.row.translated is not None:
            translate = self.task.translate if self.row.translated else "none"
            if recipe.translation is not None:
                settings.append("translation=null")
            for stage in recipe.stages:
                if "source" in stage.objective.requirements.streams:
                    key = f"stages.{stage.name}.objective.translate"
                    settings.append(f"{key}={'none' if ':' in translate else translate}")
        return (*settings, *self.row.settings)

    @property
    def target(self) -> str:
        """KIND:ROOT of the target images."""
        return self.row.target or self.task.target

    @property
    def data(self) -> DataConfig:
        """Datasets of the run."""
        source = None
        if "source" in self.row.own_recipe.streams[0]:
            is_folder = self.row.translated and self.task.translation == "translated"
            source = self.task.translate if is_folder else self.task.source
        return DataConfig(source, self.target, self.row.num_labels, engine=self.task.engine)

    @property
    def changes(self) -> Changes:
        """Changes of the recipe: the task's, as far as they are for its streams."""
        return self.task.changes.for_recipe(self.row.own_recipe)

    def recipe(self) -> Recipe:
        """Return the recipe with all settings, as the run trains it."""
        recipe = override(self.changes.apply(self.row.own_recipe), self.settings)
        return select_stages(recipe, self.row.stages) if self.row.stages else recipe

    def command(self, out: str) -> list[str]:
        """Return the command line that makes the run in folder ``out``."""
        task, data = self.task, self.data
        recipe = [self.row.recipe] if self.row.file is None else ["--recipe", self.row.file]
        words = ["udas-fast", "train", *recipe]
        for file in method_files(self.row.own_recipe):
            words += ["--method-file", file]
        words += ["--source", data.source] if isinstance(data.source, str) else []
        words += ["--target", self.target, "--num-labels", str(data.num_labels), "--seed", str(self.seed)]
        words += [*self.changes.options(), "--engine", task.engine, "--device", task.device]
        words += ["--weights", task.weights] if task.weights else []
        words += ["--from", str(Path(out).parent / self.start.folder)] if self.start else []
        words += ["--stages", ",".join(self.row.stages)] if self.row.stages else []
        return [*words, *(word for s in self.settings for word in ("--set", s)), "--out", out]

    @property
    def scores_file(self) -> str:
        """Name of the file of its scores: those of training, or of the dataset that the row is scored on."""
        if (name := self.row.scored_on) is None:
            return "scores.json"
        digest = hashlib.blake2b(absolute(name).encode(), digest_size=4).hexdigest()
        return f"scores-{name.partition(':')[0]}-{digest}.json"

    def score_command(self, out: str) -> list[str]:
        """Return the command line that scores the run in folder ``out`` on the row's own dataset."""
        words = ["udas-fast", "evaluate", out, "--data", str(self.row.scored_on), "--split", "train"]
        return [*words, "--device", self.task.device, "--json", f"{out}/{self.scores_file}"]


def _slug(setting: str) -> str:
    """Return ``KEY=VALUE`` as a part of a folder's name, such as ``mixing-null``."""
    short = re.sub(r"^(stages\.\*\.)?(objective\.)?|^stages\.|(?<=\.)objective\.", "", setting)
    return re.sub(r"[^\w.]+", "-", short).strip("-")


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


def plan_study(
    study: Study, task: Task, *, seeds: Sequence[int], num_labels: Sequence[int] | None = None
) -> StudyPlan:
    """Plan the runs of ``study`` on ``task``.

    ``num_labels`` are numbers of labelled target images, which are nested subsets; None: the paper's, or some
    (:func:`udas_fast.tools.study.paper.num_labels`). Studies of one number take the first. With 0 the methods study has
    the methods without labels.

    Raises:
        InputError: a setting that no recipe of the study has or that does not fit, rows with different numbers of
            steps, the same number twice, a recipe's file that cannot join, or an ablation without a translation.
    """
    if study not in STUDIES:
        raise unknown("study", study, STUDIES)
    (plan,) = _plans(study, [study], task, seeds, num_labels)
    return plan


def plan_paper(
    task: Task, *, seeds: Sequence[int], num_labels: Sequence[int] | None = None
) -> tuple[StudyPlan, ...]:
    """Plan all studies on ``task``, which share their common runs; arguments and errors are :func:`plan_study`'s.

    A setting has to reach a recipe of one of them.
    """
    return _plans("paper", STUDIES, task, seeds, num_labels)


def _plans(
    name: str, studies: Sequence[Study], task: Task, seeds: Sequence[int], num_labels: Sequence[int] | None
) -> tuple[StudyPlan, ...]:
    _check_task(name, studies, task)
    for option, numbers in (("--seeds", seeds), ("--num-labels", num_labels)):
        if numbers is None:
            continue
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            found = ",".join(map(str, numbers)) or "none"
            raise bad(option, found, "different whole numbers from 0, at least one")
    rows, left_out = {}, {}
    for study in studies:
        counts = paper.num_labels(study, task.source, task.target) if num_labels is None else num_labels
        rows[study], left_out[study] = study_rows(study, task, counts)
    recipes = [row.own_recipe for of_study in rows.values() for row in of_study]
    if task.makes_translation:
        TranslationRun(task).recipe()  # its settings fit
        recipes.append(get_recipe("cyclegan"))
    check_settings(name, task.settings, recipes)
    return tuple(_plan(study, task, rows[study], seeds, left_out[study]) for study in studies)


def _plan(
    study: Study, task: Task, rows: tuple[StudyRow, ...], seeds: Sequence[int], left_out: str
) -> StudyPlan:
    recipes = [StudyRun(row, task, seeds[0]).recipe() for row in rows]
    if study == "parts":  # what UDAS already does is no row beside it
        same = [i > 0 and recipe == recipes[0] for i, recipe in enumerate(recipes)]
        rows = tuple(row for row, is_same in zip(rows, same, strict=True) if not is_same)
    runs = tuple(StudyRun(row, task, seed) for seed in seeds for row in rows)
    own_lengths = task.changes.small is None and task.changes.steps is None
    steps = _common_steps(
        runs[: len(rows)], allow_different=own_lengths and study in ("labels", "methods", "ddm")
    )
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


def _check_task(name: str, studies: Sequence[Study], task: Task) -> None:
    if task.translation != "translated" and task.translate not in get_args(Translate):
        raise unknown("--translate", task.translate, [*get_args(Translate), "cyclegan", "translated:DIR"])
    if "methods" not in studies and task.recipes:
        raise bad(
            f"--recipe {task.recipes[0]}", f"the {name} study", "methods, which has a row for any recipe"
        )
