"""Loaders of training and evaluation batches; a training batch is a pure function of (seed, name, step)."""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from udas_fast import distributed
from udas_fast.data import augment
from udas_fast.data.bad_files import BadFile, BadFiles, LoaderStopped, read_or_replace
from udas_fast.data.datasets import Joined
from udas_fast.data.geometry import Geometry, SampledGeometry, resize
from udas_fast.data.prefetch import prefetch
from udas_fast.data.sampler import RareClasses, Sampler
from udas_fast.data.types import (
    Batch,
    LoadResult,
    Sample,
    SegmentationDataset,
    read_sample,
    require_dataset,
)
from udas_fast.errors import InputError, bad

Engine = Literal["torch", "dali"]
AnyEngine = Literal["torch", "dali", "auto"]
ENGINES = get_args(AnyEngine)


def choose_engine(engine: AnyEngine, datasets: Sequence[SegmentationDataset]) -> Engine:
    """Return ``engine``; ``auto`` is ``dali`` if it is installed and every dataset consists of files, else ``torch``.

    Raises:
        InputError: ``dali`` is requested, but not installed or a dataset has no files.
    """
    without_files = [dataset.name for dataset in datasets if dataset.spec is None]
    installed = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    if engine == "auto":
        return "torch" if without_files or not installed else "dali"
    if engine == "dali" and not installed:
        raise bad("data engine 'dali'", "no DALI", "`pip install udas-fast[dali]`, or the engine 'torch'")
    if engine == "dali" and without_files:
        found = f"{without_files[0]}, which has no files"
        raise bad("data engine 'dali'", found, "datasets on disk, or 'torch'")
    return engine


class TrainLoader:
    """Endless, shuffled, augmented batches of ``dataset``; each is a pure function of (seed, name, step).

    :class:`~udas_fast.data.sampler.Sampler` chooses the image of draw n; it is augmented with a generator seeded by
    (seed, name, n). So a run can resume at any step, and the number of workers changes nothing.

    Args:
        dataset: source of the samples.
        geometry: resize, crop and flip of each sample.
        batch_size: images in a batch of this process.
        seed: of everything random.
        name: makes the loaders of one run, which share a seed, independent.
        workers: ``torch``: processes, 0 is this one; ``dali``: threads, 0 is one.
        engine: ``torch`` or ``dali``; images, geometry, labels and views are the same, but the pixels of images and
            views not bit for bit.
        views: kinds of the augmented views of each image, which are ``Batch.views``.
        rare_classes: draws images by the classes that they show, instead of each once an epoch.
        rank: of this process.
        world_size: number of processes that share the draws.
        bad_files: counts the files that become unreadable; by default the first one raises BadFile.

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
        views: Sequence[augment.ViewKind] = (),
        rare_classes: RareClasses | None = None,
        rank: int = 0,
        world_size: int = 1,
        bad_files: BadFiles | None = None,
    ) -> None:
        require_dataset(f"data of {name}", dataset)
        if workers < 0:
            raise bad("workers", workers, "0 or more")
        self.dataset = dataset
        self.geometry = geometry
        parts = dataset.lengths_and_shares if isinstance(dataset, Joined) else ()
        self.sampler = Sampler(len(dataset), batch_size, seed, name, rank, world_size, rare_classes, parts)
        self.workers = workers
        self.engine = choose_engine(engine, [dataset])
        self.views = tuple(views)
        self.bad_files = bad_files or BadFiles()

    def batches(self, start_step: int = 0, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Yield the batches of steps ``start_step``, ``start_step`` + 1, …, without end, on ``device``.

        Raises:
            BadFile: a file is unreadable and no more may be skipped; names the file.
        """
        if start_step < 0:
            raise bad("start_step", start_step, "0 or more")
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            # Resolved here, because the thread that reads ahead starts with another current device.
            device = torch.device("cuda", torch.cuda.current_device())
        results = self._dali(start_step, device) if self.engine == "dali" else self._torch(start_step)
        return self._skip_bad_files(prefetch(results, device))

    @property
    def global_batch(self) -> int:
        """Images of one step over all processes; a run can only resume with the same number."""
        return self.sampler.global_batch

    def _torch(self, start_step: int) -> Iterator[LoadResult]:
        return _load(_AugmentedSamples(self), _DrawsOfSteps(start_step, self.sampler), self.workers)

    def _dali(self, start_step: int, device: torch.device) -> Iterator[LoadResult]:
        from udas_fast.data.dali import DaliEngine

        engine = DaliEngine(
            self.dataset,
            self.geometry,
            self.sampler,
            views=self.views,
            threads=max(1, self.workers),
            max_bad_files=self.bad_files.limit,
            device=device,
        )
        return engine.batches(start_step)

    def _skip_bad_files(self, results: Iterator[LoadResult]) -> Iterator[Batch]:
        for batch, messages in results:
            self.bad_files.add(messages)
            if batch is None:
                raise BadFile(f"{messages[-1]}; no other image of {self.dataset.name} can be read")
            yield batch


def evaluation_batches(
    dataset: SegmentationDataset,
    size: tuple[int, int] | None = None,
    workers: int = 0,
    batch_size: int = 1,
) -> Iterator[Batch]:
    """Yield all samples in order: images resized to ``size`` (H, W), labels at their own size.

    A batch holds up to ``batch_size`` neighbours whose images are of one size, and whose labels are. ``size=None``
    keeps each image's own size. With several processes, yield the samples of this one: each sample belongs to one
    process. ``workers`` processes decode ahead; 0 is this one.

    Raises:
        InputError: a file is unreadable; names the file.
    """
    require_dataset("evaluation data", dataset)
    if size is not None and min(size) < 1:
        raise bad("evaluation size", size, "(H, W) of 1 or more")
    return _in_order(dataset, size, workers, batch_size)


def _in_order(
    dataset: SegmentationDataset, size: tuple[int, int] | None, workers: int, batch_size: int
) -> Iterator[Batch]:
    indices = [[i] for i in distributed.shard_indices(len(dataset))]
    together: list[Batch] = []
    for batch, messages in _load(_ResizedSamples(dataset, size), indices, workers):
        if batch is None:
            raise InputError(messages[0])
        if together and (len(together) == batch_size or _shapes(batch) != _shapes(together[0])):
            yield _joined(together)
            together = []
        together.append(batch)
    if together:
        yield _joined(together)


def _shapes(batch: Batch) -> list[torch.Size]:
    return [tensor.shape for tensor in batch.tensors()]


def _joined(batches: Sequence[Batch]) -> Batch:
    """Return one batch of images and labels of equal shapes."""
    if len(batches) == 1:
        return batches[0]
    labels = [batch.label for batch in batches if batch.label is not None]
    image = torch.cat([batch.image for batch in batches])
    return Batch(image, torch.cat(labels) if labels else None, [name for b in batches for name in b.ids])


@dataclass(frozen=True)
class _LoadedSample:
    """One sample of a batch, None if none could be read, and a message for each file that could not be read."""

    sample: Sample | None
    messages: list[str]
    geometry: SampledGeometry | None = None
    views: torch.Tensor | None = None


class _DrawsOfSteps:
    """Batch sampler: the draws of each step, from step ``start`` on."""

    def __init__(self, start: int, sampler: Sampler) -> None:
        self.start = start
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield list(self.sampler.draws(step))
            step += 1


class _AugmentedSamples(Dataset):
    """Map a draw to its augmented sample, or that of another image if the draw's own is unreadable."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader

    def __getitem__(self, draw: int) -> _LoadedSample:
        loader, sampler = self.loader, self.loader.sampler
        index = sampler.image_index(draw)
        sample, messages = read_or_replace(
            lambda i: read_sample(loader.dataset, i), index, sampler.length, loader.bad_files.limit
        )
        if sample is None:
            return _LoadedSample(None, messages)
        geometry = sampler.sample_geometry(loader.geometry, draw, sample.label)
        sample = Sample(*geometry.apply(sample.image, sample.label), sample.id)
        if not loader.views:
            return _LoadedSample(sample, messages, geometry)
        rng = sampler.generator("views", draw)
        operations = [augment.draw(rng, kind) for kind in loader.views]
        images = _to_tensor(sample.image).expand(len(operations), -1, -1, -1)
        return _LoadedSample(sample, messages, geometry, augment.apply_each(images, operations))


class _ResizedSamples(Dataset):
    """Map an index to its sample with the image resized."""

    def __init__(self, dataset: SegmentationDataset, size: tuple[int, int] | None) -> None:
        self.dataset = dataset
        self.size = size

    def __getitem__(self, index: int) -> _LoadedSample:
        try:
            sample = read_sample(self.dataset, index)
        except InputError as error:
            return _LoadedSample(None, [str(error)])
        size = self.size or (sample.image.shape[0], sample.image.shape[1])
        image = resize(sample.image, size, Image.Resampling.BILINEAR)
        return _LoadedSample(Sample(image, sample.label, sample.id), [])


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # torch takes no negative strides, which a user's BGR[..., ::-1] has
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _collate(loaded: list[_LoadedSample]) -> LoadResult:
    messages = [message for one in loaded for message in one.messages]
    samples = [one.sample for one in loaded if one.sample is not None]
    if len(samples) < len(loaded):
        return None, messages
    image = torch.stack([_to_tensor(sample.image) for sample in samples]).contiguous()
    labels = [sample.label for sample in samples if sample.label is not None]
    label = None
    if len(labels) == len(samples):
        label = torch.stack([torch.from_numpy(np.ascontiguousarray(one)) for one in labels])
    views = [one.views for one in loaded if one.views is not None]
    geometries = [one.geometry for one in loaded if one.geometry is not None]
    return Batch(
        image, label, [sample.id for sample in samples], torch.stack(views) if views else None, geometries
    ), messages


def _load(samples: Dataset, batches: Iterable[list[int]], workers: int) -> Iterator[LoadResult]:
    """Read ``samples`` in the order of ``batches``, in this process or in workers that read ahead."""
    # Unreadable files are returned as messages: torch would wrap a worker's exception in a traceback.
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: otherwise every new iterator takes a number from torch's global one.
        generator=torch.Generator(),
    )
    stopped = None
    try:
        yield from _without_interrupts(loader)
    except (RuntimeError, OSError, EOFError) as error:
        if (stopped := _why_workers_stopped(error)) is None:
            raise
    if stopped is not None:  # raised here, as the traceback above would keep the other workers alive
        raise stopped


def _without_interrupts(loader: DataLoader) -> Iterator[LoadResult]:
    """Return an iterator whose workers' end is told where it is read.

    torch's own handler of SIGCHLD raises anywhere else as well: in the middle of a step. It may be there already, of
    another DataLoader of the process.
    """
    if loader.num_workers == 0 or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "") == signal_handling.__name__:
        handler = signal.SIG_DFL
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, handler)


_ENDED = (
    "workers that run on: the system may end them where memory runs out, or shared memory (docker run --shm-size=8g); "
    "fewer of them"
)
# Parts of torch's and the system's messages, and what helps.
_CAUSES = {
    "shared memory": "more of it (docker run --shm-size=8g)",
    "Bus error": "more shared memory (docker run --shm-size=8g)",
    "Too many open files": "a higher limit (ulimit -n 65536)",
    "Cannot allocate memory": "more memory, fewer workers",
    "DataLoader worker (pid": _ENDED,
}


def _why_workers_stopped(error: Exception) -> LoaderStopped | None:
    """Return a sentence about worker processes that the system has stopped; None for any other error."""
    message = str(error)
    help = next((help for part, help in _CAUSES.items() if part in message), None)
    if help is None and isinstance(error, (ConnectionError, EOFError)):
        # It ended while its images were fetched, before torch saw it.
        message, help = f"one that ended ({type(error).__name__})", _ENDED
    if help is None:
        return None
    found = next(line for line in reversed(message.strip().splitlines()) if line.strip())
    return LoaderStopped(
        str(bad("loader workers", found, f"{help}, or --workers 0 (data.workers in run.yaml)"))
    )
