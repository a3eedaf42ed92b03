"""A run whose source is translated first: CycleGAN in a folder of the run, and its images in the source's place."""

from __future__ import annotations

from pathlib import Path

from udas_fast.data import SegmentationDataset, open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.data.task import with_classes
from udas_fast.engine.interrupt import Interrupted
from udas_fast.errors import bad
from udas_fast.recipes import Recipe
from udas_fast.recipes.translation import translation_of, with_translation
from udas_fast.training.requirements import show_notices
from udas_fast.training.run_folder import RunConfig
from udas_fast.training.translation.run import SPLIT, Translation, TranslationConfig, at_native_size

TRANSLATED = "translated:"


def untranslated_twice(recipe: Recipe, data: DataConfig | Domains) -> Recipe:
    """Return ``recipe`` without a translation of its own where the source has been translated, with a notice."""
    sources = list(data.sources) if isinstance(data, DataConfig) else []
    ways = translation_of(recipe)
    if not sources or not all(source.startswith(TRANSLATED) for source in sources) or not ways:
        return recipe
    show_notices(
        [f"source {', '.join(sources)} is translated: {', '.join(ways)} of recipe {recipe.name} is left out"]
    )
    return with_translation(recipe, "none")


def check_translation(recipe: Recipe, data: DataConfig | None) -> None:
    """Raise InputError for a recipe that translates its source first, and datasets that are objects."""
    if recipe.translation is not None and data is None:
        raise bad(
            f"data of recipe {recipe.name}, whose source CycleGAN translates",
            "datasets as objects",
            "a DataConfig, or another translation: udas_fast.recipes.with_translation(recipe, 'lab')",
        )
    if recipe.translation is not None and data is not None and len(data.sources) > 1:
        found = f"{len(data.sources)} for recipe {recipe.name}, whose source CycleGAN translates"
        raise bad("--source", found, "one, or another translation: --translate lab")


def translate_source(
    recipe: Recipe,
    data: DataConfig,
    folder: Path,
    *,
    settings: RunConfig,
    allow_other_data: bool,
    device: str,
) -> SegmentationDataset:
    """Return the source's training images in the target's style, with their labels; make what is left of them.

    Args:
        recipe: CycleGAN's.
        data: datasets of the run by name.
        folder: of the translation, a run of its own.
        settings: of the run; the translation has its seed and the steps between its checkpoints.
        allow_other_data: as in :meth:`Translation.resume`.
        device: as in :class:`Translation`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; finished work is kept.
        InputError: the reasons of :class:`Translation`.
    """
    if (folder / "run.yaml").is_file():
        translation = Translation.resume(folder, allow_other_data=allow_other_data, device=device)
    else:
        own = DataConfig(data.source, data.target, workers=data.workers, bit_depth=data.bit_depth)
        config = TranslationConfig(
            own, seed=settings.seed, log_every=settings.log_every, checkpoint_every=settings.checkpoint_every
        )
        translation = Translation(at_native_size(recipe, own), config, run_dir=folder, device=device)
    try:
        translation.fit()
    except Interrupted as stopped:
        raise Interrupted(f"stopped in the translation; go on with --resume {folder.parent}") from stopped
    translated = open_dataset(f"{TRANSLATED}{folder}", SPLIT, bit_depth=data.bit_depth)
    return with_classes(translated, data.classes)
