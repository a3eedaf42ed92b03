"""Batches that are a pure function of (seed, name, step), so that any run can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from udas_fast.data.geometry import Geometry, resize
from udas_fast.data.seeding import generator
from udas_fast.data.types import Batch, Sample, SegmentationDataset
from udas_fast.errors import InputError, bad


class Stream:
    """An endless, shuffled, augmented stream of batches from ``dataset``.

    Draw n is image ``permutation(seed, name, epoch)[n mod len]`` in epoch ``n div len``, augmented with a
    generator seeded by (seed, name, n); the batch of step t holds draws ``t * batch_size`` onwards. The
    number of workers changes nothing. ``name`` keeps the streams of one run apart.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        geometry: Geometry,
        batch_size: int,
        seed: int,
        name: str,
        workers: int = 0,
    ) -> None:
        if len(dataset) == 0:
            raise bad(f"stream {name}", "no images", "at least one")
        if batch_size < 1:
            raise bad(f"batch size of {name}", batch_size, "1 or more")
        if workers < 0:
            raise bad("workers", workers, "0 or more")
        self.dataset = dataset
        self.geometry = geometry
        self.batch_size = batch_size
        self.seed = seed
        self.name = name
        self.workers = workers

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of steps ``start_step``, ``start_step`` + 1, …, without end.

        Raises InputError naming the file where one turns out to be unreadable.
        """
        if start_step < 0:
            raise bad("start_step", start_step, "0 or more")
        return _load(_Draws(self), _Steps(start_step, self.batch_size), self.workers)


def evaluation_batches(
    dataset: SegmentationDataset, size: tuple[int, int] | None = None, workers: int = 0
) -> Iterator[Batch]:
    """All samples in order, one to a batch: the image resized to ``size`` (H, W), the label at its own size.

    ``size=None`` keeps the image's own size. Raises InputError naming the file where one is unreadable.
    """
    if size is not None and min(size) < 1:
        raise bad("evaluation size", size, "(H, W) of 1 or more")
    return _load(_InOrder(dataset, size), [[i] for i in range(len(dataset))], workers)


class _Steps:
    """The draw numbers of each step, from ``start`` on."""

    def __init__(self, start: int, batch_size: int) -> None:
        self.start = start
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.batch_size


class _Draws(Dataset):
    """Draw number → augmented sample, or the InputError that came instead of it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.epoch = -1
        self.order = np.empty(0, np.int64)

    def __getitem__(self, draw: int) -> Sample | InputError:
        stream = self.stream
        epoch, place = divmod(draw, len(stream.dataset))
        if epoch != self.epoch:
            self.order = generator(stream.seed, stream.name, "order", epoch).permutation(len(stream.dataset))
            self.epoch = epoch
        try:
            sample = stream.dataset[int(self.order[place])]
        except InputError as error:
            return error
        rng = generator(stream.seed, stream.name, "augment", draw)
        return Sample(*stream.geometry.apply(sample.image, sample.label, rng), sample.id)


class _InOrder(Dataset):
    """Index → sample with its image resized, or the InputError that came instead of it."""

    def __init__(self, dataset: SegmentationDataset, size: tuple[int, int] | None) -> None:
        self.dataset = dataset
        self.size = size

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            sample = self.dataset[index]
        except InputError as error:
            return error
        size = self.size or sample.image.shape[:2]
        image = resize(sample.image, size, Image.Resampling.BILINEAR)
        return Sample(image, sample.label, sample.id)


def _collate(samples: list[Sample | InputError]) -> Batch | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images = torch.stack([torch.from_numpy(sample.image) for sample in samples])
    image = images.permute(0, 3, 1, 2).contiguous()
    if any(sample.label is None for sample in samples):
        label = None
    else:
        label = torch.stack([torch.from_numpy(sample.label) for sample in samples])
    return Batch(image, label, [sample.id for sample in samples])


def _load(items: Dataset, steps: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """Read ``items`` in the order of ``steps``, in this process or in workers that read ahead."""
    loader = DataLoader(
        items,
        batch_sampler=steps,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: otherwise every new iterator takes a number from torch's global one.
        generator=torch.Generator(),
    )
    for batch in loader:
        # A worker hands the error over as a value: torch would wrap its message in a traceback.
        if isinstance(batch, InputError):
            raise batch
        yield batch
