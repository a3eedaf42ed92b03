"""The source in the target's style: CycleGAN before the first stage, or statistics in every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from udas_fast.errors import bad
from udas_fast.recipes.cyclegan import CYCLEGAN, small_cyclegan
from udas_fast.recipes.recipe import Recipe, Stage

Translation: TypeAlias = Literal["cyclegan", "lab", "fda", "none"]
TRANSLATIONS = get_args(Translation)


def with_translation(recipe: Recipe, way: Translation, *, small: bool = False) -> Recipe:
    """Return ``recipe`` with its source in the target's style in this ``way``, and in no other.

    "cyclegan": images of a CycleGAN that is trained first (UDAS 3.2), with ``small`` a narrow one for minutes on a CPU;
    "lab", "fda": statistics of the images of each step; "none": the source as it is.

    Raises:
        InputError: the recipe sees no source, or "lab" or "fda" for stages that cannot.
    """
    if "source" not in recipe.streams[0]:
        raise bad("--translate", way, f"nothing: recipe {recipe.name} sees no source")
    per_step = "none" if way == "cyclegan" else way
    stages = tuple(
        replace(stage, objective=replace(stage.objective, translate=per_step))  # type: ignore[type-var]  # a dataclass
        if _translates(stage)
        else stage
        for stage in recipe.stages
    )
    if per_step != "none" and not any(map(_translates, stages)):
        raise bad("--translate", way, f"cyclegan or none: no stage of recipe {recipe.name} translates")
    cyclegan = None
    if way == "cyclegan":
        cyclegan = small_cyclegan(CYCLEGAN, crop=(128, 128)) if small else CYCLEGAN
    return replace(recipe, stages=stages, translation=cyclegan)


def _translates(stage: Stage) -> bool:
    """Return whether the stage reads the source and can show it in the target's style."""
    return "source" in stage.objective.requirements.streams and hasattr(stage.objective, "translate")


def translation_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the ways in which ``recipe`` translates its source, each once."""
    ways = [getattr(stage.objective, "translate", "none") for stage in recipe.stages]
    first = [] if recipe.translation is None else [recipe.translation.name]
    return tuple(dict.fromkeys([*first, *(way for way in ways if way != "none")]))
