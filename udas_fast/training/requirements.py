"""Data of a recipe: opened, checked before any work, and what the user should know about it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from udas_fast import distributed
from udas_fast.data import SegmentationDataset, UserLoader, class_weights
from udas_fast.data.datasets import Joined
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.data.inputs import batch_size_per_process
from udas_fast.errors import bad
from udas_fast.recipes import Recipe, Stage


def open_domains(data: DataConfig, recipe: Recipe, labelled_ids: Sequence[str] | None = None) -> Domains:
    """Open the datasets of ``data`` that ``recipe`` uses; ``labelled_ids``: as in :meth:`Domains.open`."""
    needed, optional = recipe.streams
    return Domains.open(
        data,
        recipe.input,
        needed=needed,
        optional=optional,
        recipe=recipe.name,
        labelled_ids=labelled_ids,
    )


def verify_data(recipe: Recipe, domains: Domains) -> None:
    """Read every file once, and show what the user should know about the data (collective).

    Raises:
        InputError: as :meth:`Domains.verify`.
    """
    notices = domains.verify()
    show_notices([*domains.notices, *notices, *domains.rare_class_notices(recipe.input)])


def show_notices(notices: Sequence[str]) -> None:
    """Show what the user should know about the data, in the main process."""
    if distributed.is_main():
        for notice in notices:
            tqdm.write(f"NOTICE: {notice}", file=sys.stderr)


def check_data(recipe: Recipe, domains: Domains) -> None:
    """Raise InputError unless every stream that ``recipe`` needs is there and fits (collective)."""
    needed, optional = recipe.streams
    for name in sorted(needed):
        if getattr(domains, name) is None:
            raise bad(f"data for recipe {recipe.name}", f"no {name!r} dataset", "one")
    if (rare := recipe.input.rare_classes) is not None:
        for role in ("source", *(("labelled",) if rare.labelled else ())):
            if isinstance(getattr(domains, role), UserLoader):
                found = f"{role} images of a UserLoader"
                raise bad("input.rare_classes", found, "none, or a dataset to draw from")
        if isinstance(domains.source, Joined) and len(set(domains.source.shares)) > 1:
            raise bad(
                "--source",
                "shares beside input.rare_classes",
                "none, as the rare classes choose the images, or --set input.rare_classes=null",
            )
    _check_class_weights(recipe, domains)
    check_batch_sizes(recipe, domains)
    for stage in recipe.stages:
        _check_stage(recipe, stage, domains)
    for role in sorted({*needed, *optional, "val"}):
        if isinstance(loader := getattr(domains, role), UserLoader):
            loader.check_sharding(scored=role == "val")


def _check_class_weights(recipe: Recipe, domains: Domains) -> None:
    weights, names = recipe.class_weights, domains.classes().names
    if isinstance(weights, tuple) and len(weights) != len(names):
        raise bad("class_weights", f"{len(weights)} numbers", f"{len(names)}: {', '.join(names)}")
    for role in ("source", "labelled") if weights == "balanced" else ():
        if isinstance(getattr(domains, role), UserLoader):
            found = f"balanced with {role} images of a UserLoader"
            raise bad(
                "class_weights", found, "a number for each class, or a dataset whose pixels are counted"
            )


def count_weights(recipe: Recipe, domains: Domains) -> tuple[float, ...] | None:
    """Return the class weights of ``recipe``, those that are balanced from the labels that it learns from (collective).

    Classes that occur in none of these labels are shown: they have weight 0.
    """
    if recipe.class_weights != "balanced":
        return recipe.class_weights
    needed, optional = recipe.streams
    weights = class_weights(domains.count_labels((needed | optional) & {"source", "labelled"}))
    if absent := [n for n, weight in zip(domains.classes().names, weights, strict=True) if not weight]:
        show_notices([f"class weights: 0 for classes that no label shows: {', '.join(absent)}"])
    return weights


def check_batch_sizes(recipe: Recipe, domains: Domains) -> None:
    """Raise InputError for batches of ``recipe`` that processes cannot share or that a stage cannot combine."""
    sizes = {
        name: size
        for name, size in recipe.batch_sizes.items()
        if isinstance(getattr(domains, name), SegmentationDataset)  # a loader's batches are the user's own
    }
    for name in sizes:
        batch_size_per_process(recipe.input, name)
    for stage in recipe.stages:
        for name in stage.objective.requirements.several:
            if sizes.get(name) == 1:
                found, expected = f"1 of {name} images", "2 or more, as it mixes different ones"
                raise bad(f"batch size of stage {stage.name}", found, expected)
        paired = {name: sizes[name] for name in stage.objective.requirements.paired if name in sizes}
        if len(set(paired.values())) > 1:
            found = ", ".join(f"{name} {size}" for name, size in paired.items())
            raise bad(
                f"batch sizes of stage {stage.name}",
                found,
                "one size, as it combines their images one by one",
            )


def _check_stage(recipe: Recipe, stage: Stage, domains: Domains) -> None:
    requirements = stage.objective.requirements
    names = domains.classes().names
    if requirements.any_class and not set(requirements.any_class) & set(names):
        raise bad(
            f"classes of stage {stage.name}", ", ".join(requirements.any_class), f"some of {', '.join(names)}"
        )
    if requirements.whole_images and isinstance(domains.unlabelled, UserLoader):
        raise bad(f"unlabelled images of stage {stage.name}", "a UserLoader", "a dataset, or labels: online")
    geometries = recipe.geometries(stage)
    sizes = {
        name: geometry.crop or geometry.size
        for name, geometry in geometries.items()
        if not isinstance(getattr(domains, name), UserLoader)  # whose images have the size that they have
    }
    for name in requirements.streams:
        if name in sizes and min(sizes[name]) < requirements.min_size:
            raise bad(
                f"size of {name} images",
                list(sizes[name]),
                f"sides of {requirements.min_size} in stage {stage.name}",
            )
    mixed = {name: sizes[name] for name in requirements.equal_sizes if name in sizes}
    if len(set(mixed.values())) > 1:
        found = ", ".join(f"{name} {list(size)}" for name, size in mixed.items())
        raise bad(
            f"sizes of the images that stage {stage.name} mixes",
            found,
            "one size (or crop) in input.source and input.target",
        )
