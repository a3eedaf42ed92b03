"""The list of recipes for a reader: stages, paper, published score and needs of each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from udas_fast.recipes.recipe import Recipe, Stage
from udas_fast.recipes.translation import translation_of

STREAMS = {
    "source": "labelled source",
    "unlabelled": "unlabelled target",
    "labelled": "labelled target (--num-labels)",
}


def listing(recipes: Iterable[Recipe]) -> str:
    """Return a paragraph for each recipe."""
    return "\n\n".join(_paragraph(recipe) for recipe in recipes)


def _paragraph(recipe: Recipe) -> str:
    needs, uses = recipe.streams
    optional = [f"{STREAMS[name]} where given" for name in STREAMS if name in uses]
    rows = {
        "stages": ", then ".join(_stage(stage) for stage in recipe.stages),
        "paper": recipe.paper,
        "published": recipe.published,
        "needs": ", ".join([*(STREAMS[name] for name in STREAMS if name in needs), *optional]),
        "translation": ", ".join(translation_of(recipe)),
    }
    lines = [
        textwrap.fill(text, 100, initial_indent=f"  {title:<12}", subsequent_indent=" " * 14)
        for title, text in rows.items()
        if text
    ]
    return "\n".join([f"{recipe.name}: {recipe.summary}", *lines])


def _stage(stage: Stage) -> str:
    rounds = f"{stage.rounds} × " if stage.rounds > 1 else ""
    kind = "" if stage.name == stage.objective.kind else f" ({stage.objective.kind})"
    return f"{stage.name}{kind} {rounds}{stage.steps:,} steps"
