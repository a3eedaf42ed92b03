"""Data of a run: a source, a target, and how many of the target's labels may be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, TypeGuard

import numpy as np
from pydantic import Field
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.config import config_dataclass
from udas_fast.data.augment import ViewKind
from udas_fast.data.bad_files import BadFiles
from udas_fast.data.check import DatasetReport, check_dataset
from udas_fast.data.classes import ClassSet
from udas_fast.data.datasets import Joined, Subset, Unlabelled
from udas_fast.data.factory import LabelsNeeded, has_labels, open_dataset
from udas_fast.data.geometry import Geometry
from udas_fast.data.identity import FileList, absolute, absolute_path, list_files
from udas_fast.data.inputs import InputConfig, batch_size_per_process
from udas_fast.data.labelled import NumLabels, select_labelled, with_label
from udas_fast.data.loader import AnyEngine, Engine, TrainLoader, choose_engine
from udas_fast.data.sampler import RareClasses
from udas_fast.data.task import unknown_names, with_classes
from udas_fast.data.types import SegmentationDataset, StreamName, require_dataset
from udas_fast.data.user_loader import UserLoader, UserTrainLoader
from udas_fast.errors import bad


@config_dataclass
class DataConfig:
    """Datasets by name, ``KIND:ROOT`` as :func:`udas_fast.data.open_dataset` reads it."""

    # One source, or several: KIND:ROOT=SHARE, whose images are drawn in proportion to the shares; 1 unless given.
    source: str | tuple[str, ...] | None = None
    target: str | None = None
    # Labelled target images: a number (a fixed, nested subset of those that have a label), "all", or a list of ids in a
    # file, one a line. None: all of ``labelled`` where that is given, else none.
    num_labels: Annotated[int, Field(ge=0)] | str | None = None
    workers: Annotated[int, Field(ge=0, le=1024)] = 0  # loader processes per stream; DALI's threads
    engine: AnyEngine = "auto"  # auto: DALI where it is installed and all images are files
    # Files that may turn bad during a run and are skipped; one more ends it.
    max_bad_files: Annotated[int, Field(ge=0)] = 0
    labelled: str | None = None  # labelled target images in a dataset of their own; None: those of the target
    # Unlabelled target images, KIND:ROOT or KIND:ROOT@SPLIT (Cityscapes' train_extra); None: the target's training
    # images but for the labelled ones.
    unlabelled: str | None = None
    # Bits of the sensor whose images are files of 16 bits; None: the least that holds the pixels of each dataset.
    bit_depth: Annotated[int, Field(ge=8, le=16)] | None = None
    # Classes of the task, each as classes of the datasets by name; others are ignored. None: the datasets' own.
    classes: dict[str, tuple[str, ...]] | None = None

    def absolute(self) -> DataConfig:
        """Return the configuration with absolute roots, so that it opens from any folder."""
        target, labelled, unlabelled = (
            name and absolute(name) for name in (self.target, self.labelled, self.unlabelled)
        )
        source = self.source
        if isinstance(source, str):
            source = absolute(source)
        elif source is not None:
            source = tuple(f"{absolute(name)}={share:.17g}" for name, share in self.sources.items())
        num_labels = self.num_labels
        if isinstance(num_labels, str) and num_labels != "all":
            num_labels = absolute_path(num_labels)
        return replace(
            self,
            source=source,
            target=target,
            labelled=labelled,
            unlabelled=unlabelled,
            num_labels=num_labels,
        )

    @property
    def sources(self) -> dict[str, float]:
        """The name of each source, ``KIND:ROOT``, with its share.

        Raises:
            InputError: one is given twice.
        """
        if self.source is None:
            return {}
        if isinstance(self.source, str):
            return {self.source: 1.0}
        found = [_with_share(name) for name in self.source]
        if len(dict(found)) < len(found):
            raise bad("--source", ", ".join(self.source), "different datasets, each once")
        return dict(found)

    @property
    def labels(self) -> NumLabels:
        """The number, list or ``all`` of labelled images that ``num_labels`` means."""
        if self.num_labels is None:
            return 0 if self.labelled is None else "all"
        return self.num_labels


_PURPOSE = {
    "source": "labels to learn from",
    "labelled": "labels to learn from",
    "val": "labels to score against; a run without val labels trains and is not scored",
}


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
    notices: tuple[str, ...] = ()
    """What the user should know about the data that was opened."""
    unused_labels: int = 0
    """Images of the target that have a label which the run does not see, though its recipe could use it."""
    _reports: dict[str, DatasetReport] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for role, data in self._named().items():
            if not isinstance(data, (SegmentationDataset, UserLoader)):
                expected = "a SegmentationDataset, or an iterable of batches as udas_fast.data.UserLoader"
                raise bad(f"data {role!r}", type(data).__name__, expected)
            if isinstance(data, SegmentationDataset):
                require_dataset(f"data {role!r}", data)

    @classmethod
    def open(
        cls,
        config: DataConfig,
        inputs: InputConfig,
        *,
        needed: Set[str],
        optional: Set[str],
        recipe: str,
        labelled_ids: Sequence[str] | None = None,
    ) -> Domains:
        """Open the datasets that a recipe uses of ``config``; every file list is checked here (collective).

        Args:
            config: datasets by name.
            inputs: sizes of drawn images.
            needed: streams that must be there.
            optional: streams that are used where they are given.
            recipe: its name, for messages.
            labelled_ids: labelled images that the run has chosen before; None: they are chosen now.

        Raises:
            InputError: a domain that the recipe needs is not given, or a dataset is not as it should be.
        """
        uses = needed | optional
        _require_domains(config, needed, uses, recipe)
        source = labelled = unlabelled = val = None
        notices: list[str] = []
        own_classes: list[ClassSet] = []

        def opened(
            name: str, split: str, size: tuple[int, int], labelled: LabelsNeeded = True
        ) -> SegmentationDataset:
            dataset = open_dataset(name, split, size=size, labelled=labelled, bit_depth=config.bit_depth)
            own_classes.append(dataset.classes)
            return with_classes(dataset, config.classes)

        if "source" in needed and config.sources:
            parts = [opened(name, "train", size=inputs.source.size) for name in config.sources]
            source = parts[0] if len(parts) == 1 else Joined(parts, tuple(config.sources.values()))
        pool_of = config.unlabelled or config.target
        if "unlabelled" in needed and pool_of is not None:
            images, split = _with_split(pool_of)
            unlabelled = Unlabelled(opened(images, split, size=inputs.target.size, labelled="some"))
        few = config.labelled or config.target
        if config.labels and few is not None:
            pool = opened(few, "train", size=inputs.source.size, labelled="some")
            labelled, notices = select_labelled(pool, few, config.labels, labelled_ids)
            if unlabelled is not None and config.unlabelled is None and config.labelled is None:
                unlabelled = Unlabelled(_without(unlabelled.dataset, labelled))
        scored = config.target or config.labelled
        if scored is not None and has_labels(scored, "val"):
            val = opened(scored, "val", size=inputs.target.size)
        if config.classes is not None and (unknown := unknown_names(config.classes, own_classes)):
            raise bad("classes of the task", ", ".join(unknown), "classes of one of the domains")
        unused = 0
        if labelled is None and unlabelled is not None and unlabelled.spec is not None and "labelled" in uses:
            unused = len(with_label(unlabelled.dataset))
        limits = config.workers, config.engine, config.max_bad_files
        return cls(source, labelled, unlabelled, val, *limits, tuple(notices), unused)

    @property
    def chosen_engine(self) -> Engine:
        """The engine of every stream.

        Raises:
            InputError: ``dali`` was asked for and cannot be had.
        """
        return choose_engine(self.engine, [d for d in self._datasets() if d is not self.val])

    def verify(self) -> list[str]:
        """Read every file once: damage, sizes that differ and ids outside the map end a run before it starts.

        Among several processes the main one reads.

        Returns:
            Notices about labels that can be read and yet are probably wrong.

        Raises:
            InputError: the first problem and how many more there are, or labels without a labelled pixel.
        """
        self._reports.update(distributed.on_main(self._check_files))
        return [
            f"{role} {report.name}: {text}"
            for role, report in self._reports.items()
            for text in report.notices(labels=role != "unlabelled")
        ]

    def _check_files(self) -> dict[str, DatasetReport]:
        """Check every file; return the reports of the datasets on disk by role."""
        reports = {}
        datasets = {role: data for role, data in self._named().items() if _is_on_disk(data)}
        total = sum(map(len, datasets.values()))
        # disable=None: no bar where nobody watches, so that an error stays the only line
        with tqdm(total=total, desc="reading every file", unit="image", leave=False, disable=None) as bar:
            for role, dataset in datasets.items():
                report = check_dataset(dataset, progress=bar.update)
                report.require_clean()
                # a translation sees the source without its labels
                learnt = role != "unlabelled" and not isinstance(dataset, Unlabelled)
                if learnt and not report.counts.any():
                    found = f"no labelled pixel in {report.labelled} labels of {report.images} images"
                    raise bad(f"labels of {role} {report.name}", found, _PURPOSE[role])
                reports[role] = report
        return reports

    def describe(self) -> str:
        """Return one line about the images that the run sees."""
        roles = self._named()
        domains = [f"{r} {d.name} ({_count(d)})" for r, d in roles.items() if r in ("source", "val")]
        seen = {role: data for role, data in roles.items() if role in ("labelled", "unlabelled")}
        if seen:
            counts = [f"{_count(seen.get(role))} {role}" for role in ("labelled", "unlabelled")]
            names = " and ".join(dict.fromkeys(data.name for data in seen.values()))
            if self.unused_labels:
                counts[-1] += f"; {self.unused_labels} labels unused without --num-labels"
            domains.insert(int("source" in roles), f"target {names} ({', '.join(counts)})")
        unscored = "" if self.val is not None else "; no labelled val images, so no scores"
        return f"data {', '.join(domains)}; engine {self.chosen_engine}{unscored}"

    @property
    def bit_depth(self) -> int | None:
        """Bit depth of the target's 16-bit images, or the source's; None where all have 8 bits."""
        depths = [data.spec.bit_depth for data in reversed(self._datasets()) if data.spec is not None]
        return next((depth for depth in depths if depth is not None), None)

    def image_counts(self) -> dict[StreamName, int]:
        """Return the number of images of each stream that is a dataset."""
        streams: dict[StreamName, SegmentationDataset | UserLoader | None] = {
            "source": self.source,
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
        }
        return {name: len(data) for name, data in streams.items() if isinstance(data, SegmentationDataset)}

    def file_lists(self) -> dict[str, FileList]:
        """Return names and sizes of the files of each dataset, by role."""
        datasets = {
            role: data for role, data in self._named().items() if isinstance(data, SegmentationDataset)
        }
        return {role: list_files(data) for role, data in datasets.items()}

    def labelled_ids(self) -> tuple[str, ...] | None:
        """Return the ids of the labelled target images; None without any, or where they are batches of a loader."""
        data = self.labelled
        if not isinstance(data, SegmentationDataset):
            return None
        return tuple(data.id(index) for index in range(len(data)))

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
                    "the same classes in every domain; --classes FILE makes them of both by name",
                )
        return data.classes

    def _report(self, role: str, dataset: SegmentationDataset) -> DatasetReport:
        """Return the counts of a dataset, of :meth:`verify` or made now (collective)."""
        if role not in self._reports:
            self._reports[role] = distributed.on_main(partial(check_dataset, dataset))
        return self._reports[role]

    def count_labels(self, streams: Set[str]) -> np.ndarray:
        """Return the pixels of each class in all labels of ``streams``, int64 ``[C]`` (collective)."""
        roles = {name: data for name, data in self._named().items() if name in streams}
        counts = [
            self._report(role, data).counts
            for role, data in roles.items()
            if isinstance(data, SegmentationDataset)
        ]
        return np.sum(counts, axis=0)

    def _rare_classes(
        self, inputs: InputConfig, geometries: Mapping[StreamName, Geometry]
    ) -> dict[str, RareClasses]:
        """Return how the images of each stream are drawn whose rare classes are preferred (collective)."""
        if (config := inputs.rare_classes) is None:
            return {}
        numbers = (config.temperature, config.min_pixels, config.min_crop_ratio)
        found: dict[str, RareClasses] = {}
        roles = {"source": self.source, "labelled": self.labelled if config.labelled else None}
        for role, geometry in geometries.items():
            if isinstance(data := roles.get(role), SegmentationDataset):
                report = self._report(role, data)
                found[role] = RareClasses(report.pixels, *numbers, areas=report.areas, size=geometry.size)
        return found

    def rare_class_notices(self, inputs: InputConfig) -> list[str]:
        """Return which classes and images rare-class sampling never draws (collective)."""
        rare = self._rare_classes(inputs, {"source": inputs.source, "labelled": inputs.source})
        names = self.classes().names
        return [
            f"rare classes of {role}: {text}" for role, one in rare.items() for text in one.notices(names)
        ]

    def loaders(
        self,
        geometries: Mapping[StreamName, Geometry],
        inputs: InputConfig,
        *,
        seed: int,
        phase: str,
        views: Sequence[ViewKind] = (),
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
            views: kinds of the augmented views of unlabelled images that DALI makes; with torch the objective makes
                them, on the device.
            bad_files: counts the files that turn bad.
            unlabelled: takes the place of the unlabelled images, which may have pseudo-labels by now.
        """
        engine = self.chosen_engine
        rare = self._rare_classes(inputs, geometries)
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
                views=views if engine == "dali" and name == "unlabelled" else (),
                rare_classes=rare.get(name),
                rank=distributed.get_rank(),
                world_size=distributed.get_world_size(),
                bad_files=bad_files,
            )

        return {name: loader(name, data) for name in geometries if (data := datasets[name]) is not None}


def _require_domains(config: DataConfig, needed: Set[str], uses: Set[str], recipe: str) -> None:
    """Raise InputError unless the domains that a recipe needs are given, and no labelled images that it ignores."""
    if "source" in needed and not config.source:
        raise bad("--source", "none", f"the labelled source domain of recipe {recipe}, as KIND:ROOT")
    target = config.target or (config.labelled if "unlabelled" not in needed else None)
    if needed & {"labelled", "unlabelled"} and target is None:
        raise bad("--target", "none", f"the target domain of recipe {recipe}, as KIND:ROOT")
    if "labelled" in needed and not config.labels:
        expected = f"labelled target images, which recipe {recipe} needs: all, a number or a list"
        raise bad("--num-labels", 0, expected)
    if "labelled" not in uses:
        if config.num_labels:
            expected = f"0: recipe {recipe} uses no labelled target images"
            raise bad("--num-labels", config.num_labels, expected)
        if config.labelled is not None:
            expected = f"none: recipe {recipe} uses no labelled target images"
            raise bad("--labelled", config.labelled, expected)


def _with_share(name: str) -> tuple[str, float]:
    """Return the dataset and the share in ``KIND:ROOT=SHARE``; the share is 1 where none is given."""
    dataset, equals, number = name.rpartition("=")
    try:
        return (dataset, float(number)) if equals else (name, 1.0)
    except ValueError:  # a folder's name
        return name, 1.0


def _with_split(name: str) -> tuple[str, str]:
    """Return the dataset and the split in ``KIND:ROOT@SPLIT``; the split is "train" where none is named."""
    dataset, at, split = name.rpartition("@")
    return (dataset, split) if at and "/" not in split else (name, "train")


def _without(pool: SegmentationDataset, labelled: Subset) -> SegmentationDataset:
    """Return the images of ``pool`` that are not ``labelled``, a subset of the same images; all where none is left."""
    rest = sorted(set(range(len(pool))) - set(labelled.indices))
    return Subset(pool, rest) if rest else pool


def _is_on_disk(data: SegmentationDataset | UserLoader) -> TypeGuard[SegmentationDataset]:
    return isinstance(data, SegmentationDataset) and data.on_disk


def _count(data: SegmentationDataset | UserLoader | None) -> str:
    """Return the number of images as text."""
    if isinstance(data, UserLoader):
        return "loader"
    return "0" if data is None else str(len(data))
