"""List of what a study would make: every run with its command and predicted memory."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from udas_fast.data import open_dataset
from udas_fast.data.specs import DATASETS
from udas_fast.engine.memory import GIB
from udas_fast.memory import predict
from udas_fast.recipes import Recipe, Stage
from udas_fast.tools.study.plan import StudyPlan, StudyRun, TranslationRun
from udas_fast.tools.study.rows import Study
from udas_fast.tools.study.runner import is_run_complete, is_translation_complete


def dry_run(plans: Sequence[StudyPlan], out: Path) -> Iterator[str]:
    """Yield the lines for every run of ``plans`` under ``out``, once: name, studies, memory and commands.

    Nothing is made. The memory is a GPU's, at the peak of all stages by prediction (:func:`udas_fast.memory.predict`),
    without evaluation; the last line has the largest.

    Raises:
        InputError: a folder holds another run, or a target of an unknown number of classes that cannot be opened.
    """
    task = plans[0].task
    classes = _num_classes(task.target)
    predicted: dict[tuple[Recipe, bool], int] = {}
    states: list[bool] = []

    def entry(
        name: str, complete: bool, recipe: Recipe, labelled: bool, commands: Iterable[list[str]]
    ) -> str:
        key = _different_stages(recipe), labelled
        if key not in predicted:
            peaks = predict(key[0], num_classes=classes, labelled=labelled)
            predicted[key] = max(peak.needed for peak in peaks)
        states.append(complete)
        state = ", complete" * complete
        return "\n  ".join([f"{name}: {predicted[key] / GIB:.1f} GB{state}", *map(shlex.join, commands)])

    if task.makes_translation:
        run = TranslationRun(task)
        name = f"{run.folder} (images for the rows with a translation)"
        yield entry(name, is_translation_complete(run), run.recipe(), False, [run.command()])
    for runs in _by_folder(plans).values():
        run_dir = out / "runs" / runs[0][1].folder
        studies = ", ".join(dict.fromkeys(study for study, _ in runs))
        first = runs[0][1]
        commands = [first.command(str(run_dir))]
        commands += [each.score_command(str(run_dir)) for _, each in runs if each.row.scored_on]
        complete = is_run_complete(first, run_dir)
        yield entry(f"{run_dir} ({studies})", complete, first.recipe(), bool(first.row.num_labels), commands)
    for plan in plans:
        if plan.left_out:
            yield f"{plan.study}: {plan.left_out}"
    most = max(predicted.values()) / GIB
    yield f"{len(states)} runs, {sum(states)} complete; at most {most:.1f} GB on a GPU, by prediction"


def _by_folder(plans: Sequence[StudyPlan]) -> dict[str, list[tuple[Study, StudyRun]]]:
    """Return the runs of each folder with their studies."""
    found: dict[str, list[tuple[Study, StudyRun]]] = {}
    for plan in plans:
        for run in plan.runs:
            found.setdefault(run.folder, []).append((plan.study, run))
    return found


def _different_stages(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with one of the stages that need the same memory: of one method, optimiser and network."""
    found: dict[Stage, Stage] = {}
    for stage in recipe.stages:
        length = replace(stage, name="stage", steps=1, rounds=1)
        found.setdefault(length, replace(length, name=stage.name))
    return replace(
        recipe, name="any", title="", summary="", paper="", published="", stages=tuple(found.values())
    )


def _num_classes(target: str) -> int:
    """Return the classes of the target, without its files where its kind has fixed ones."""
    spec = DATASETS.get(target.partition(":")[0])
    return len(spec.classes if spec else open_dataset(target, "train", labelled=False).classes)
