"""Which data a run uses: a source, a target, and how many of the target's labels may be seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.data import (
    BadFiles,
    ClassSet,
    RareClasses,
    SegmentationDataset,
    TrainLoader,
    Unlabelled,
    UserLoader,
    UserTrainLoader,
    check_dataset,
    choose_engine,
    has_labels,
    open_dataset,
    subset,
)
from udas_fast.data.loader import AnyEngine, Engine
from udas_fast.errors import InputError, bad
from udas_fast.objectives import STRICT
from udas_fast.recipes.recipe import InputConfig, Recipe


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Datasets by name, ``KIND:ROOT`` as :func:`udas_fast.data.open_dataset` reads it."""

    source: str | None = None
    target: str | None = None
    num_labels: Annotated[int, Field(ge=0)] = 0  # labelled target images: a fixed, nested subset
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes per stream; DALI's threads
    engine: AnyEngine = "auto"  # auto: DALI where it is installed and all images are files
    # Files that may turn bad during a run and are skipped; one more ends it.
    max_bad_files: Annotated[int, Field(ge=0)] = 0


@plain_dataclass(frozen=True)
class Domains:
    """The data of a run: any :class:`SegmentationDataset`, or a user's own batches (:class:`UserLoader`).

    Raises:
        InputError: something else.
    """

    source: SegmentationDataset | UserLoader | None = None
    labelled: SegmentationDataset | UserLoader | None = None
    unlabelled: SegmentationDataset | UserLoader | None = None
    val: SegmentationDataset | UserLoader | None = None
    workers: int = 0
    engine: AnyEngine = "auto"
    max_bad_files: int = 0

    def __post_init__(self) -> None:
        for role, data in self._named().items():
            if not isinstance(data, (SegmentationDataset, UserLoader)):
                expected = "a SegmentationDataset, or an iterable of batches as udas_fast.data.UserLoader"
                raise bad(f"data {role!r}", type(data).__name__, expected)

    @classmethod
    def open(cls, config: DataConfig, recipe: Recipe) -> Domains:
        """Open what ``recipe`` needs of ``config``; every file list is checked here.

        Raises:
            InputError: a domain that the recipe needs is not given, or a dataset is not as it should be.
        """
        needs, uses = recipe.streams
        inputs = recipe.input
        if "source" in needs and config.source is None:
            raise bad("--source", "none", f"the labelled source domain of recipe {recipe.name}, as KIND:ROOT")
        if needs & {"labelled", "unlabelled"} and config.target is None:
            raise bad("--target", "none", f"the target domain of recipe {recipe.name}, as KIND:ROOT")
        if "labelled" in needs and not config.num_labels:
            raise bad(
                "--num-labels", 0, f"the number of labelled target images, which recipe {recipe.name} needs"
            )
        if config.num_labels and "labelled" not in needs | uses:
            raise bad(
                "--num-labels", config.num_labels, f"0: recipe {recipe.name} uses no labelled target images"
            )
        source = labelled = unlabelled = val = None
        if "source" in needs:
            source = open_dataset(config.source, "train", size=inputs.source.size)
        if "unlabelled" in needs:
            unlabelled = _open_unlabelled(config.target, inputs.target.size)
        if config.num_labels:
            pool = open_dataset(config.target, "train", size=inputs.source.size)
            labelled = subset(pool, config.num_labels)
        if config.target is not None and has_labels(config.target, "val"):
            val = open_dataset(config.target, "val", size=inputs.target.size)
        return cls(source, labelled, unlabelled, val, config.workers, config.engine, config.max_bad_files)

    @property
    def chosen_engine(self) -> Engine:
        """The engine of every stream.

        Raises:
            InputError: ``dali`` was asked for and cannot be had.
        """
        return choose_engine(self.engine, [d for d in self._datasets() if d is not self.val])

    def require(self, recipe: Recipe) -> None:
        """Raise InputError unless every stream that ``recipe`` needs is here, and can be shared by the processes.

        Collective.
        """
        needs, uses = recipe.streams
        for name in sorted(needs):
            if getattr(self, name) is None:
                raise bad(f"data for recipe {recipe.name}", f"no {name!r} dataset", "one")
        self.require_batch_sizes(recipe)
        if recipe.input.rare_classes is not None and isinstance(self.source, UserLoader):
            raise bad(
                "input.rare_classes", "a source that is a UserLoader", "none, or a dataset to draw from"
            )
        shapes = {"source": recipe.input.source, "unlabelled": recipe.input.target}
        for stage in recipe.stages:
            if stage.objective.by_number and isinstance(self.unlabelled, UserLoader):
                expected = "a dataset, or labels: online"
                raise bad(f"unlabelled images of stage {stage.name}", "a UserLoader", expected)
            for name, shape in shapes.items():
                size, least = shape.crop or shape.size, stage.objective.shortest_side
                asked = name in stage.objective.needs and not isinstance(getattr(self, name), UserLoader)
                if asked and min(size) < least:
                    raise bad(f"size of {name} images", list(size), f"sides of {least} in stage {stage.name}")
        for name in sorted({*needs, *uses, "val"}):
            if isinstance(loader := getattr(self, name), UserLoader):
                loader.require_part(scored=name == "val")

    def require_batch_sizes(self, recipe: Recipe) -> None:
        """Raise InputError for batches of ``recipe`` that processes cannot share or that a stage cannot combine."""
        datasets = [
            name for name in recipe.batch_sizes if isinstance(getattr(self, name), SegmentationDataset)
        ]
        for name in datasets:
            _batch_size(recipe.input, name)
        for stage in recipe.stages:
            sizes = {
                n: size
                for n, size in recipe.batch_sizes.items()
                if n in stage.objective.paired and n in datasets
            }
            if len(set(sizes.values())) > 1:
                found = ", ".join(f"{name} {size}" for name, size in sizes.items())
                raise bad(
                    f"batch sizes of stage {stage.name}",
                    found,
                    "one size, as it combines their images one by one",
                )

    def verify(self) -> None:
        """Read every file once: damage, sizes that differ and ids outside the map end a run before it starts.

        Among several processes the main one reads.

        Raises:
            InputError: the first problem, and how many more there are.
        """
        if (pixels := distributed.on_main(self._check_files)) is not None:
            vars(self)["_source_pixels"] = pixels

    def _check_files(self) -> np.ndarray | None:
        """What :attr:`_source_pixels` is, where the source has files."""
        pixels = None
        datasets = [d for d in self._datasets() if d.on_disk]
        total = sum(map(len, datasets))
        # disable=None: no bar where nobody watches, so that an error stays the only line
        with tqdm(total=total, desc="reading every file", unit="image", leave=False, disable=None) as bar:
            for dataset in datasets:
                report = check_dataset(dataset, progress=bar.update)
                report.require_clean()
                if dataset is self.source:
                    pixels = report.pixels
        return pixels

    def describe(self) -> str:
        """One line: which images the run sees."""
        named = self._named().items()
        images = ", ".join(
            f"{role} {d.name} ({'loader' if isinstance(d, UserLoader) else len(d)})" for role, d in named
        )
        unscored = "" if self.val is not None else "; no labelled val images, so no scores"
        return f"data {images}; engine {self.chosen_engine}{unscored}"

    def _named(self) -> dict[str, SegmentationDataset | UserLoader]:
        """What is there, by role."""
        roles = {
            "source": self.source,
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "val": self.val,
        }
        return {role: data for role, data in roles.items() if data is not None}

    def _datasets(self) -> list[SegmentationDataset]:
        return [data for data in self._named().values() if not isinstance(data, UserLoader)]

    def classes(self) -> ClassSet:
        """The classes, the same in every domain.

        Raises:
            InputError: the domains have different classes.
        """
        (role, data), *others = self._named().items()
        for other_role, other in others:
            if difference := data.classes.first_difference(other.classes):
                raise bad(
                    "classes",
                    f"{len(data.classes)} in {role} {data.name} and {len(other.classes)} in {other_role} {other.name}, "
                    f"{difference}",
                    "the same classes in every domain",
                )
        return data.classes

    @cached_property
    def _source_pixels(self) -> np.ndarray:
        """Pixels of each class in each source image, as :meth:`verify` counted them or counted now."""
        return distributed.on_main(lambda: check_dataset(self.source).pixels)

    def streams(
        self,
        names: Iterable[str],
        inputs: InputConfig,
        *,
        mixed: bool,
        seed: int,
        phase: str,
        views: int = 1,
        faults: BadFiles | None = None,
        unlabelled: SegmentationDataset | None = None,
    ) -> dict[str, TrainLoader | UserTrainLoader]:
        """The endless batches of a phase. With ``mixed``, labelled target images take the source's geometry.

        ``unlabelled`` stands in for the unlabelled images, which may have pseudo-labels by now.
        Several processes share each batch, as many images each.
        DALI makes the ``views`` of unlabelled images; with torch the objective does, on the device.
        """
        engine, rare = self.chosen_engine, None
        if inputs.rare_classes is not None and self.source is not None:
            config = inputs.rare_classes
            rare = RareClasses(
                self._source_pixels, config.temperature, config.min_pixels, config.min_crop_ratio
            )
        datasets = {
            "source": self.source,
            "labelled": self.labelled,
            "unlabelled": unlabelled or self.unlabelled,
        }
        source_like = {"source", "labelled"} if mixed else {"source"}

        def stream(name: str) -> TrainLoader | UserTrainLoader:
            data, place = datasets[name], f"{phase}/{name}"
            if isinstance(data, UserLoader):
                return UserTrainLoader(data, seed, place, labelled=name != "unlabelled")
            return TrainLoader(
                data,
                inputs.source if name in source_like else inputs.target,
                batch_size=_batch_size(inputs, name),
                seed=seed,
                name=place,
                workers=self.workers,
                engine=engine,
                views=views if engine == "dali" and name == "unlabelled" else 1,
                rare=rare if name == "source" else None,
                rank=distributed.get_rank(),
                world=distributed.get_world_size(),
                faults=faults,
            )

        return {name: stream(name) for name in names if datasets[name] is not None}


def _batch_size(inputs: InputConfig, stream: str) -> int:
    """Return this process's part of a batch of ``stream``."""
    own = getattr(inputs.stream_batch_size, stream) is not None
    return distributed.per_rank(
        inputs.batch_size_of(stream), f"input.stream_batch_size.{stream}" if own else "input.batch_size"
    )


def _open_unlabelled(spec: str, size: tuple[int, int]) -> SegmentationDataset:
    """The images alone; labels that exist stay behind :class:`Unlabelled`, for reports."""
    try:
        return Unlabelled(open_dataset(spec, "train", size=size))
    except InputError:
        return open_dataset(spec, "train", size=size, labelled=False)
