"""Batches that are a pure function of (seed, name, step), so that any run can be resumed at any step."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from udas_fast import distributed
from udas_fast.data import augment
from udas_fast.data.bad_files import BadFile, BadFiles, read_or_replace
from udas_fast.data.geometry import Geometry, Placement, resize
from udas_fast.data.prefetch import Loaded, prefetch
from udas_fast.data.sampler import RareClasses, Sampler
from udas_fast.data.types import Batch, Sample, SegmentationDataset
from udas_fast.errors import InputError, bad

Engine = Literal["torch", "dali"]
AnyEngine = Literal["torch", "dali", "auto"]
ENGINES = get_args(AnyEngine)


def choose_engine(engine: AnyEngine, datasets: Sequence[SegmentationDataset]) -> Engine:
    """``auto`` is ``dali`` where it is installed and every dataset consists of files, else ``torch``.

    Raises InputError where ``dali`` is asked for and one of the two is missing.
    """
    drawn = [dataset.name for dataset in datasets if dataset.description is None]
    installed = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    if engine == "auto":
        return "torch" if drawn or not installed else "dali"
    if engine == "dali" and not installed:
        raise bad("data engine 'dali'", "no DALI", "`pip install udas-fast[dali]`, or the engine 'torch'")
    if engine == "dali" and drawn:
        raise bad("data engine 'dali'", f"{drawn[0]}, which has no files", "datasets on disk, or 'torch'")
    return engine


class TrainLoader:
    """An endless, shuffled, augmented stream of batches from ``dataset``.

    Draw n is the image that :class:`~udas_fast.data.sampler.Sampler` tells, augmented with a generator seeded by
    (seed, name, n). The number of workers changes nothing. ``name`` keeps the streams of one run apart.

    Args:
        dataset, geometry: what is read, and what happens to its shape.
        batch_size: images in a batch of this process.
        seed, name: everything random follows from them.
        workers: ``torch``: processes, 0 is this one; ``dali``: threads, 0 is one.
        engine: ``torch`` or ``dali``; the same images, geometry, labels and views, images and views not to the bit.
        views: K views of each image; the K - 1 augmented ones are ``Batch.views``.
        rare: draw images by the classes that they show, instead of each once an epoch.
        rank, world: this process and how many share the draws.
        faults: counts the files that turn bad; by default the first one ends the stream.

    Raises:
        InputError: no images, or numbers outside their range.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        geometry: Geometry,
        batch_size: int,
        seed: int,
        name: str,
        workers: int = 0,
        *,
        engine: Engine = "torch",
        views: int = 1,
        rare: RareClasses | None = None,
        rank: int = 0,
        world: int = 1,
        faults: BadFiles | None = None,
    ) -> None:
        if workers < 0:
            raise bad("workers", workers, "0 or more")
        if views < 1:
            raise bad(f"views of {name}", views, "1 or more")
        self.dataset = dataset
        self.geometry = geometry
        self.sampler = Sampler(len(dataset), batch_size, seed, name, rank, world, rare)
        self.workers = workers
        self.engine = choose_engine(engine, [dataset])
        self.views = views
        self.faults = faults or BadFiles()

    def batches(self, start_step: int = 0, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """The batches of steps ``start_step``, ``start_step`` + 1, …, without end, on ``device``.

        Raises BadFile naming the file where one turns out to be unreadable and no more may be skipped.
        """
        if start_step < 0:
            raise bad("start_step", start_step, "0 or more")
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            # Here, because the thread that reads ahead starts with a current device of its own.
            device = torch.device("cuda", torch.cuda.current_device())
        loaded = self._dali(start_step, device) if self.engine == "dali" else self._torch(start_step)
        return self._without_faults(prefetch(loaded, device))

    @property
    def global_batch(self) -> int:
        """Images of one step over all processes: a run can only go on with the same."""
        return self.sampler.global_batch

    def _torch(self, start_step: int) -> Iterator[Loaded]:
        return _load(_Draws(self), _Steps(start_step, self.sampler), self.workers)

    def _dali(self, start_step: int, device: torch.device) -> Iterator[Loaded]:
        from udas_fast.data.dali import DaliEngine

        engine = DaliEngine(
            self.dataset,
            self.geometry,
            self.sampler,
            views=self.views,
            threads=max(1, self.workers),
            limit=self.faults.limit,
            device=device,
        )
        return engine.batches(start_step)

    def _without_faults(self, loaded: Iterator[Loaded]) -> Iterator[Batch]:
        for batch, faults in loaded:
            self.faults.add(faults)
            if batch is None:
                raise BadFile(f"{faults[-1]}; no image of {self.dataset.name} can be read any more")
            yield batch


def evaluation_batches(
    dataset: SegmentationDataset, size: tuple[int, int] | None = None, workers: int = 0
) -> Iterator[Batch]:
    """All samples in order, one to a batch: the image resized to ``size`` (H, W), the label at its own size.

    ``size=None`` keeps the image's own size. Among several processes those of this one: every sample goes to one of
    them. Raises InputError naming the file where one is unreadable.
    """
    if size is not None and min(size) < 1:
        raise bad("evaluation size", size, "(H, W) of 1 or more")
    return _in_order(dataset, size, workers)


def _in_order(dataset: SegmentationDataset, size: tuple[int, int] | None, workers: int) -> Iterator[Batch]:
    for batch, faults in _load(
        _InOrder(dataset, size), [[i] for i in distributed.shard_indices(len(dataset))], workers
    ):
        if batch is None:
            raise InputError(faults[0])
        yield batch


@dataclass(frozen=True)
class _Item:
    """One image of a batch, None where none could be read; and a sentence for each file that could not."""

    sample: Sample | None
    faults: list[str]
    placement: Placement | None = None
    views: list[torch.Tensor] = field(default_factory=list)


class _Steps:
    """The draw numbers of each step, from ``start`` on."""

    def __init__(self, start: int, sampler: Sampler) -> None:
        self.start = start
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield list(self.sampler.draws(step))
            step += 1


class _Draws(Dataset):
    """Draw number → augmented sample, of another image where the draw's own turned bad."""

    def __init__(self, stream: TrainLoader) -> None:
        self.stream = stream

    def __getitem__(self, draw: int) -> _Item:
        stream, sampler = self.stream, self.stream.sampler
        index = sampler.index(draw)
        sample, faults = read_or_replace(
            lambda i: stream.dataset[i].checked(), index, sampler.length, stream.faults.limit
        )
        if sample is None:
            return _Item(None, faults)
        placement = sampler.place(stream.geometry, draw, sample.label)
        sample = Sample(*placement.apply(sample.image, sample.label), sample.id)
        rng, image = sampler.generator("views", draw), _tensor(sample.image)
        views = [augment.apply_all(image, augment.draw(rng)) for _ in range(stream.views - 1)]
        return _Item(sample, faults, placement, views)


class _InOrder(Dataset):
    """Index → sample with its image resized."""

    def __init__(self, dataset: SegmentationDataset, size: tuple[int, int] | None) -> None:
        self.dataset = dataset
        self.size = size

    def __getitem__(self, index: int) -> _Item:
        try:
            sample = self.dataset[index].checked()
        except InputError as error:
            return _Item(None, [str(error)])
        size = self.size or sample.image.shape[:2]
        image = resize(sample.image, size, Image.Resampling.BILINEAR)
        return _Item(Sample(image, sample.label, sample.id), [])


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(
        2, 0, 1
    )  # BGR[..., ::-1] has a negative stride


def _collate(items: list[_Item]) -> Loaded:
    faults = [sentence for item in items for sentence in item.faults]
    samples = [item.sample for item in items if item.sample is not None]
    if len(samples) < len(items):
        return None, faults
    image = torch.stack([_tensor(sample.image) for sample in samples]).contiguous()
    if any(sample.label is None for sample in samples):
        label = None
    else:
        label = torch.stack([torch.from_numpy(np.ascontiguousarray(sample.label)) for sample in samples])
    views = torch.stack([torch.stack(item.views) for item in items]) if items[0].views else None
    placements = [item.placement for item in items if item.placement is not None]
    return Batch(image, label, [sample.id for sample in samples], views, placements), faults


def _load(items: Dataset, steps: Iterable[list[int]], workers: int) -> Iterator[Loaded]:
    """Read ``items`` in the order of ``steps``, in this process or in workers that read ahead."""
    # BadFiles come as values: torch would wrap a worker's exception in a traceback.
    loader = DataLoader(
        items,
        batch_sampler=steps,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: otherwise every new iterator takes a number from torch's global one.
        generator=torch.Generator(),
    )
    return iter(loader)
