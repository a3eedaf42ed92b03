"""Data of a run: a source, a target, and how many of the target's labels may be seen."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated

import numpy as np
from pydantic import Field
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.config import config_dataclass
from udas_fast.data.bad_files import BadFiles
from udas_fast.data.check import check_dataset
from udas_fast.data.classes import ClassSet
from udas_fast.data.datasets import Unlabelled, subset
from udas_fast.data.factory import has_labels, open_dataset
from udas_fast.data.geometry import Geometry
from udas_fast.data.loader import AnyEngine, Engine, TrainLoader, choose_engine
from udas_fast.data.sampler import RareClasses
from udas_fast.data.types import SegmentationDataset, StreamName
from udas_fast.data.user_loader import UserLoader, UserTrainLoader
from udas_fast.errors import InputError, bad


@config_dataclass
class RareClassConfig:
    """Source images drawn by the classes that they show (:class:`udas_fast.data.RareClasses`)."""

    temperature: Annotated[float, Field(gt=0)] = 0.01  # DAFormer
    min_pixels: Annotated[int, Field(gt=0)] = 3000  # DAFormer, of the 1914 × 1052 of GTA5
    min_crop_ratio: Annotated[float, Field(ge=0)] = 0.5  # DAFormer: a crop shows more than this share of them


@config_dataclass
class StreamBatchSize:
    """Batch sizes of single streams, over all processes; None: :attr:`InputConfig.batch_size`."""

    source: Annotated[int, Field(gt=0)] | None = None
    labelled: Annotated[int, Field(gt=0)] | None = None
    unlabelled: Annotated[int, Field(gt=0)] | None = None


@config_dataclass
class InputConfig:
    """Images as the network sees them. Labelled target images that are mixed with the source take its geometry."""

    source: Geometry = field(default_factory=lambda: Geometry(size=(720, 1280)))  # AdaptSegNet
    target: Geometry = field(default_factory=lambda: Geometry(size=(512, 1024)))  # AdaptSegNet
    batch_size: Annotated[int, Field(gt=0)] = 1  # of each stream in a step, over all processes
    stream_batch_size: StreamBatchSize = field(default_factory=StreamBatchSize)  # of streams that differ
    rare_classes: RareClassConfig | None = None  # None: each source image once an epoch

    def batch_size_of(self, stream: str) -> int:
        """Return the number of images of ``stream`` in a step, over all processes."""
        return getattr(self.stream_batch_size, stream) or self.batch_size

    def per_process(self, processes: int) -> InputConfig:
        """Return this configuration with each process's part of the batches."""
        parts = {
            name: size and max(1, size // processes) for name, size in asdict(self.stream_batch_size).items()
        }
        return replace(
            self,
            batch_size=max(1, self.batch_size // processes),
            stream_batch_size=StreamBatchSize(**parts),
        )


@config_dataclass
class DataConfig:
    """Datasets by name, ``KIND:ROOT`` as :func:`udas_fast.data.open_dataset` reads it."""

    source: str | None = None
    target: str | None = None
    num_labels: Annotated[int, Field(ge=0)] = 0  # labelled target images: a fixed, nested subset
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes per stream; DALI's threads
    engine: AnyEngine = "auto"  # auto: DALI where it is installed and all images are files
    # Files that may turn bad during a run and are skipped; one more ends it.
    max_bad_files: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Domains:
    """The data of a run: datasets (:class:`SegmentationDataset`), or a user's own batches (:class:`UserLoader`).

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
    def open(
        cls, config: DataConfig, inputs: InputConfig, *, needed: Set[str], optional: Set[str], recipe: str
    ) -> Domains:
        """Open the datasets that a recipe uses of ``config``; every file list is checked here.

        Args:
            config: datasets by name.
            inputs: sizes of drawn images.
            needed: streams that must be there.
            optional: streams that are used where they are given.
            recipe: its name, for messages.

        Raises:
            InputError: a domain that the recipe needs is not given, or a dataset is not as it should be.
        """
        if "source" in needed and config.source is None:
            raise bad("--source", "none", f"the labelled source domain of recipe {recipe}, as KIND:ROOT")
        if needed & {"labelled", "unlabelled"} and config.target is None:
            raise bad("--target", "none", f"the target domain of recipe {recipe}, as KIND:ROOT")
        if "labelled" in needed and not config.num_labels:
            raise bad("--num-labels", 0, f"the number of labelled target images, which recipe {recipe} needs")
        if config.num_labels and "labelled" not in needed | optional:
            raise bad("--num-labels", config.num_labels, f"0: recipe {recipe} uses no labelled target images")
        source = labelled = unlabelled = val = None
        if "source" in needed and config.source is not None:
            source = open_dataset(config.source, "train", size=inputs.source.size)
        if "unlabelled" in needed and config.target is not None:
            unlabelled = _open_unlabelled(config.target, inputs.target.size)
        if config.num_labels and config.target is not None:
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

    def verify(self) -> None:
        """Read every file once: damage, sizes that differ and ids outside the map end a run before it starts.

        Among several processes the main one reads.

        Raises:
            InputError: the first problem, and how many more there are.
        """
        if (pixels := distributed.on_main(self._check_files)) is not None:
            vars(self)["_source_pixels"] = pixels

    def _check_files(self) -> np.ndarray | None:
        """Check every file; return :attr:`_source_pixels` where the source has files."""
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
        """Return one line about the images that the run sees."""
        named = self._named().items()
        images = ", ".join(
            f"{role} {d.name} ({'loader' if isinstance(d, UserLoader) else len(d)})" for role, d in named
        )
        unscored = "" if self.val is not None else "; no labelled val images, so no scores"
        return f"data {images}; engine {self.chosen_engine}{unscored}"

    def _named(self) -> dict[str, SegmentationDataset | UserLoader]:
        """Return the datasets and loaders that are there, by role."""
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
        """Return the classes, the same in every domain.

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
        """Pixels of each class in each source image, counted by :meth:`verify` or now."""
        assert isinstance(self.source, SegmentationDataset)  # rare classes are refused for a UserLoader
        return distributed.on_main(partial(_count_pixels, self.source))

    def loaders(
        self,
        geometries: Mapping[StreamName, Geometry],
        inputs: InputConfig,
        *,
        seed: int,
        phase: str,
        views: int = 1,
        bad_files: BadFiles | None = None,
        unlabelled: SegmentationDataset | None = None,
    ) -> dict[str, TrainLoader | UserTrainLoader]:
        """Return the endless batches of a phase by stream, of those streams that are here.

        Several processes share each batch, as many images each.

        Args:
            geometries: geometry of each stream that the phase may read.
            inputs: batch size, and how source images are drawn.
            seed: the run's seed.
            phase: name of the phase.
            views: photometric views of unlabelled images that DALI makes; with torch the objective makes them, on the
                device.
            bad_files: counts the files that turn bad.
            unlabelled: takes the place of the unlabelled images, which may have pseudo-labels by now.
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

        def loader(name: StreamName, data: SegmentationDataset | UserLoader) -> TrainLoader | UserTrainLoader:
            place = f"{phase}/{name}"
            if isinstance(data, UserLoader):
                return UserTrainLoader(data, seed, place, labelled=name != "unlabelled")
            return TrainLoader(
                data,
                geometries[name],
                batch_size=batch_size_per_process(inputs, name),
                seed=seed,
                name=place,
                workers=self.workers,
                engine=engine,
                views=views if engine == "dali" and name == "unlabelled" else 1,
                rare_classes=rare if name == "source" else None,
                rank=distributed.get_rank(),
                world_size=distributed.get_world_size(),
                bad_files=bad_files,
            )

        return {name: loader(name, data) for name in geometries if (data := datasets[name]) is not None}


def _count_pixels(dataset: SegmentationDataset) -> np.ndarray:
    return check_dataset(dataset).pixels


def batch_size_per_process(inputs: InputConfig, stream: str) -> int:
    """Return this process's part of a batch of ``stream``; raises InputError where it does not divide."""
    own = getattr(inputs.stream_batch_size, stream) is not None
    key = f"input.stream_batch_size.{stream}" if own else "input.batch_size"
    return distributed.per_rank(inputs.batch_size_of(stream), key)


def _batch_size(inputs: InputConfig, stream: str) -> int:
    """Return this process's part of a batch of ``stream``."""
    own = getattr(inputs.stream_batch_size, stream) is not None
    return distributed.per_rank(
        inputs.batch_size_of(stream), f"input.stream_batch_size.{stream}" if own else "input.batch_size"
    )


def _open_unlabelled(spec: str, size: tuple[int, int]) -> SegmentationDataset:
    """Open images alone; labels that exist stay behind :class:`Unlabelled`, for reports."""
    try:
        return Unlabelled(open_dataset(spec, "train", size=size))
    except InputError:
        return open_dataset(spec, "train", size=size, labelled=False)
