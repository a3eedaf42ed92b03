"""Batches of a user's own loader, converted to the form that :class:`udas_fast.data.TrainLoader` yields."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udas_fast import distributed
from udas_fast.data.classes import IGNORE, ClassSet, make_class_set
from udas_fast.data.types import Batch
from udas_fast.errors import bad
from udas_fast.seeding import generator

IMAGE_KEYS = ("image", "pixel_values")  # the second is transformers'
LABEL_KEYS = ("label", "labels", "mask")


class UserLoader:
    """A user's own batches, such as a ``torch.utils.data.DataLoader``, in place of a dataset.

    Any iterable that can be iterated again. A batch is a tuple or list (image, label, …), an image alone, a dict with
    "image" or "pixel_values" and "label", "labels" or "mask" (and optionally "id", a list of names), or a
    :class:`Batch`. Images are RGB ``[N, 3, H, W]``, uint8 or floating in [0, 1] and not normalised; labels are
    train ids ``[N, H, W]``, whole numbers of any dtype, 255 is ignored. They reach the network unchanged: size,
    crops, batch size and augmentation are those of the loader, not of the recipe.

    A stopped run resumes bit for bit if the loader draws from the global generators of torch, numpy and ``random``
    or from none, because these are seeded for every epoch and batch; the batches of the epoch that were trained on
    are drawn again and dropped. With several processes each training loader shards itself (``DistributedSampler``,
    whose ``set_epoch`` is called); a loader for scoring is the same in all, and each process takes some of its
    batches. :meth:`check_sharding` refuses others.

    Args:
        batches: the iterable.
        classes: a :class:`ClassSet`, or the names in the order of the train ids.
        name: used in messages, scores and pictures.
        denormalize: converts a batch's images to the form above, for a loader that normalises them.

    Raises:
        InputError: not an iterable, or not 2 to 255 different class names.
    """

    def __init__(
        self,
        batches: Iterable[object],
        classes: ClassSet | Sequence[str],
        name: str = "loader",
        denormalize: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(batches, Iterable):
            raise bad(f"batches of {name}", type(batches).__name__, "an iterable of batches")
        if not isinstance(classes, ClassSet):
            classes = make_class_set(f"classes of {name}", name, classes)
        self.batches, self.classes, self.name, self.denormalize = batches, classes, name, denormalize

    def epoch(self, *, labelled: bool = True) -> Iterator[Batch]:
        """Yield the batches of one pass; without ``labelled`` only their images are read.

        Raises:
            InputError: something that is not a batch; describes it.
        """
        for number, raw in enumerate(self.batches):
            yield self._batch(raw, number, labelled)

    def check_sharding(self, *, scored: bool) -> None:
        """Compare the first batch of all processes (collective); a single process is always right.

        Processes must train on different batches even if all use the same random numbers; batches to be ``scored``
        must be the same in all even if each uses its own.

        Raises:
            InputError: they are not, or there is no batch.
        """
        if distributed.get_world_size() == 1:
            return
        _seed_global(0, "part", *([distributed.get_rank()] if scored else []))
        if (first := next(self.epoch(labelled=False), None)) is None:
            raise bad(f"batches of {self.name}", "none", "at least one")
        checksum = zlib.crc32(first.image.cpu().contiguous().numpy().tobytes())
        different = len(set(distributed.all_gather_object(checksum)))
        if not scored and different < distributed.get_world_size():
            expected = "a different part in each, for example with torch's DistributedSampler"
            raise bad(f"batches of {self.name}", "the same in several processes", expected)
        if scored and different > 1:
            expected = "the same in all, which score them in turn: no shuffling, no DistributedSampler"
            raise bad(f"batches of {self.name}", "others in each process", expected)

    def _batch(self, raw: object, number: int, labelled: bool) -> Batch:
        batch = raw if isinstance(raw, Batch) else self._unpack(raw, number, labelled)
        name = f"{self.name}, batch {number}"
        image = batch.image if self.denormalize is None else self.denormalize(batch.image)
        label = None
        if batch.label is not None and labelled:
            label = _train_ids(name, batch.label, len(self.classes))
        if label is not None and len(label) != len(image):
            raise bad(f"labels of {name}", len(label), f"the {len(image)} of its images")
        return replace(batch, image=_rgb(name, image), label=label)

    def _unpack(self, raw: object, number: int, labelled: bool) -> Batch:
        names = None
        if isinstance(raw, Mapping):
            image, label = (_first_of(raw, keys) for keys in (IMAGE_KEYS, LABEL_KEYS))
            names = raw.get("id")
        elif isinstance(raw, (tuple, list)) and raw:
            image, label = raw[0], raw[1] if len(raw) > 1 else None
        else:
            image, label = raw, None
        label = label if labelled else None
        if not isinstance(image, Tensor) or not (label is None or isinstance(label, Tensor)):
            found = type(raw).__name__
            if isinstance(raw, Mapping):
                found = f"a dict with {', '.join(map(str, raw))}"
            expected = "(image, label) tensors, or a dict with 'image' and 'label'"
            raise bad(f"batch {number} of {self.name}", found, expected)
        if names is None:
            names = [f"batch {number} image {i}" for i in range(len(image))]
        return Batch(image, label, [str(name) for name in names])


class UserTrainLoader:
    """Endless batches of a :class:`UserLoader` for training; each is a function of (seed, name, step)."""

    def __init__(self, loader: UserLoader, seed: int, name: str, *, labelled: bool) -> None:
        self.loader, self.labelled = loader, labelled
        self.key = (seed, name) if distributed.is_main() else (seed, name, distributed.get_rank())
        # Images of one step over all processes, 0 if the loader has no batch_size; a run can only resume with the same.
        self.global_batch = distributed.get_world_size() * (getattr(loader.batches, "batch_size", None) or 0)

    def batches(self, start_step: int = 0, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Yield the batches of steps ``start_step``, ``start_step`` + 1, …, without end, on ``device``.

        Raises:
            InputError: an epoch is empty or of another length than the loader's ``len()``, or something is not a
                batch or, where labels are expected, has none.
        """
        length = self._length()
        skipped, start = divmod(start_step, length) if length else (0, start_step)
        for epoch in count(skipped):
            drawn = 0
            for drawn, batch in enumerate(self._epoch(epoch), 1):
                if drawn > start:
                    yield batch.to(device)
            if drawn == 0 or (length and drawn != length):
                expected = "at least one, of an iterable that can be iterated again"
                if length:
                    expected = f"{length}, its len()"
                raise bad(f"batches of {self.loader.name} in epoch {epoch + 1}", drawn, expected)
            start = max(0, start - drawn)

    def _length(self) -> int | None:
        batches = self.loader.batches
        try:
            return len(batches) if isinstance(batches, Sized) else None
        except TypeError:  # a DataLoader over an iterable dataset
            return None

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield one pass; the global generators are seeded before each batch, as the loader may draw from them."""
        for sampler in _samplers(self.loader.batches):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        batches = self.loader.epoch(labelled=self.labelled)
        for number in count():
            # A DataLoader shuffles when the first batch is requested.
            _seed_global(*self.key, epoch, number)
            batch = next(batches, None)
            if batch is None:
                return
            if self.labelled and batch.label is None:
                raise bad(f"batch {number} of {self.loader.name}", "no label", "labelled images")
            yield batch


def _samplers(batches: object) -> list[object]:
    """Return the samplers of images and of batches of a DataLoader; the elements are None for other iterables."""
    by_batch = getattr(batches, "batch_sampler", None)
    return [getattr(batches, "sampler", None), by_batch, getattr(by_batch, "sampler", None)]


def _first_of(raw: Mapping[Any, Any], keys: Sequence[str]) -> object:
    """Return the value of the first of ``keys`` in ``raw``, None without any."""
    return next((raw[key] for key in keys if key in raw), None)


def _seed_global(*key: int | str) -> None:
    seed = int(generator(*key, "loader").integers(2**32))
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the generator that users' code draws from)
    random.seed(seed)


def _rgb(name: str, image: Tensor) -> Tensor:
    """Return images as uint8 ``[N, 3, H, W]``."""
    if image.dim() != 4 or image.shape[1] != 3 or not len(image):
        raise bad(f"images of {name}", list(image.shape), "[N, 3, H, W]")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise bad(f"images of {name}", image.dtype, "torch.uint8, or floats in [0, 1]")
    low, high = torch.stack(image.aminmax()).tolist()
    if not (low >= 0 and high <= 1):  # NaN is neither
        expected = "[0, 1]: leave normalisation to the trainer, or undo it with `denormalize`"
        raise bad(f"images of {name}", f"values from {low:.3g} to {high:.3g}", expected)
    return image.mul(255).round().to(torch.uint8)


def _train_ids(name: str, label: Tensor, classes: int) -> Tensor:
    """Return train ids as uint8 ``[N, H, W]``."""
    if label.dim() != 3 or label.is_complex() or label.dtype == torch.bool:
        raise bad(f"labels of {name}", f"{label.dtype} {list(label.shape)}", "integer train ids [N, H, W]")
    if label.is_floating_point():
        if (odd := label[label != label.round()]).numel():
            raise bad(f"labels of {name}", f"the number {odd[0].item():g}", "whole train ids [N, H, W]")
    else:
        label = label.long()  # torch cannot compare unsigned integers of more than 8 bits
    wrong = label[((label < 0) | (label >= classes)) & (label != IGNORE)]
    if wrong.numel():
        raise bad(f"labels of {name}", f"id {wrong[0].item()}", f"0 to {classes - 1}, or {IGNORE}")
    return label.to(torch.uint8)
