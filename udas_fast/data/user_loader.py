"""Batches from a user's own loader, brought to the form and to the promise of :class:`udas_fast.data.TrainLoader`."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from udas_fast import distributed
from udas_fast.data.specs import class_set
from udas_fast.data.types import IGNORE, Batch, ClassSet
from udas_fast.errors import bad
from udas_fast.seeding import generator

IMAGE_KEYS = ("image", "pixel_values")  # the second is transformers'
LABEL_KEYS = ("label", "labels", "mask")


@dataclass(frozen=True, eq=False)
class UserLoader:
    """A user's own batches, such as a ``torch.utils.data.DataLoader``, in the place of a dataset.

    Any iterable that can be begun again. A batch is a tuple or list (image, label, …), an image alone, a dict with
    "image" or "pixel_values" and "label", "labels" or "mask" (and maybe "id", a list of names), or a
    :class:`Batch`. Images are RGB ``[N, 3, H, W]``, uint8 or floating in [0, 1] and not yet normalised; labels are
    train ids ``[N, H, W]``, whole numbers of any dtype, 255 is ignored. They reach the network as they come: size,
    crops, batch size and augmentation are the loader's, not the recipe's.

    A run that was stopped goes on to the same bits where the loader draws from the global generators of torch,
    numpy and ``random`` or from none, as these are seeded for every epoch and batch; the batches of the epoch that
    were trained on are drawn again and dropped. Across processes each loader shards itself (``DistributedSampler``,
    whose ``set_epoch`` is called); one to score on is the same in all, and each process takes some of its batches:
    :meth:`require_part` refuses what is not so.

    Args:
        batches: the iterable.
        classes: a :class:`ClassSet`, or the names in the order of the train ids.
        name: names it in messages, scores and pictures.
        pixels: turns a batch's images into such images, for a loader that normalises them.

    Raises:
        InputError: no iterable, or names that are no 2 to 255 different ones.
    """

    batches: Iterable[object]
    classes: ClassSet | Sequence[str]
    name: str = "loader"
    pixels: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batches, Iterable):
            raise bad(f"batches of {self.name}", type(self.batches).__name__, "an iterable of batches")
        if not isinstance(self.classes, ClassSet):
            object.__setattr__(self, "classes", class_set(f"classes of {self.name}", self.name, self.classes))

    def epoch(self, *, labelled: bool = True) -> Iterator[Batch]:
        """The batches of one pass, as they come; without ``labelled`` nothing but their images is looked at.

        Raises:
            InputError: a batch that is none; names what was found.
        """
        for number, raw in enumerate(self.batches):
            yield self._batch(raw, number, labelled)

    def require_part(self, *, scored: bool) -> None:
        """Look at the first batch as each process gets it (collective); alone there is nothing to look at.

        Batches to train on have to be each process's own although all draw with the same random numbers; those to be
        ``scored`` have to be the same in all although each draws with its own.

        Raises:
            InputError: they are not, or there is none.
        """
        if distributed.get_world_size() == 1:
            return
        _seed_global(0, "part", *([distributed.get_rank()] if scored else []))
        if (first := next(self.epoch(labelled=False), None)) is None:
            raise bad(f"batches of {self.name}", "none", "at least one")
        different = len(
            set(distributed.all_gather_object(zlib.crc32(first.image.cpu().contiguous().numpy())))
        )
        if not scored and different < distributed.get_world_size():
            expected = "each one's own part, for example by torch's DistributedSampler"
            raise bad(f"batches of {self.name}", "the same in several processes", expected)
        if scored and different > 1:
            expected = "the same in all, which take turns to score them: no shuffling, no DistributedSampler"
            raise bad(f"batches of {self.name}", "others in each process", expected)

    def _batch(self, raw: object, number: int, labelled: bool) -> Batch:
        batch = raw if isinstance(raw, Batch) else self._unpack(raw, number, labelled)
        name = f"{self.name}, batch {number}"
        image = batch.image if self.pixels is None else self.pixels(batch.image)
        label = (
            None if batch.label is None or not labelled else _train_ids(name, batch.label, len(self.classes))
        )
        if label is not None and len(label) != len(image):
            raise bad(f"labels of {name}", len(label), f"the {len(image)} of its images")
        return replace(batch, image=_rgb(name, image), label=label)

    def _unpack(self, raw: object, number: int, labelled: bool) -> Batch:
        names = None
        if isinstance(raw, Mapping):
            image, label = (
                next((raw[key] for key in keys if key in raw), None) for keys in (IMAGE_KEYS, LABEL_KEYS)
            )
            names = raw.get("id")
        elif isinstance(raw, (tuple, list)) and raw:
            image, label = raw[0], raw[1] if len(raw) > 1 else None
        else:
            image, label = raw, None
        label = label if labelled else None
        if not isinstance(image, Tensor) or not (label is None or isinstance(label, Tensor)):
            found = (
                f"a dict with {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else type(raw).__name__
            )
            expected = "(image, label) tensors, or a dict with 'image' and 'label'"
            raise bad(f"batch {number} of {self.name}", found, expected)
        if names is None:
            names = [f"batch {number} image {i}" for i in range(len(image))]
        return Batch(image, label, [str(name) for name in names])


class UserTrainLoader:
    """The endless batches of a :class:`UserLoader`, of which a batch is a function of (seed, name, step)."""

    def __init__(self, loader: UserLoader, seed: int, name: str, *, labelled: bool) -> None:
        self.loader, self.labelled = loader, labelled
        self.place = (seed, name) if distributed.is_main() else (seed, name, distributed.get_rank())
        # Images of one step over all processes, as far as the loader tells: a run can only go on with the same.
        self.global_batch = distributed.get_world_size() * (getattr(loader.batches, "batch_size", None) or 0)

    def batches(self, start_step: int = 0, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """The batches of steps ``start_step``, ``start_step`` + 1, …, without end, on ``device``.

        Raises:
            InputError: an epoch without a batch or of another length than the loader says, or a batch that is none
                or, where labels are expected, has none.
        """
        length = self._length()
        skipped, start = divmod(start_step, length) if length else (0, start_step)
        for epoch in count(skipped):
            drawn = 0
            for drawn, batch in enumerate(self._epoch(epoch), 1):
                if drawn > start:
                    yield batch.to(device)
            if drawn == 0 or (length and drawn != length):
                expected = (
                    f"{length}, its len()"
                    if length
                    else "at least one, of an iterable that can be begun again"
                )
                raise bad(f"batches of {self.loader.name} in epoch {epoch + 1}", drawn, expected)
            start = max(0, start - drawn)

    def _length(self) -> int | None:
        try:
            return len(self.loader.batches)
        except TypeError:
            return None

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass; the global generators are at a state of their own whenever the loader may draw from them."""
        for sampler in _samplers(self.loader.batches):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        batches = self.loader.epoch(labelled=self.labelled)
        for number in count():
            # A DataLoader shuffles when the first batch is asked for.
            _seed_global(*self.place, epoch, number)
            batch = next(batches, None)
            if batch is None:
                return
            if self.labelled and batch.label is None:
                raise bad(f"batch {number} of {self.loader.name}", "no label", "labelled images")
            yield batch


def _samplers(batches: object) -> list[object]:
    """What a DataLoader draws images or batches by, whichever of the two it was given; None of any other iterable."""
    by_batch = getattr(batches, "batch_sampler", None)
    return [getattr(batches, "sampler", None), by_batch, getattr(by_batch, "sampler", None)]


def _seed_global(*place: int | str) -> None:
    seed = int(generator(*place, "loader").integers(2**32))
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the one that users' code draws from)
    random.seed(seed)


def _rgb(name: str, image: Tensor) -> Tensor:
    """uint8 ``[N, 3, H, W]``."""
    if image.dim() != 4 or image.shape[1] != 3 or not len(image):
        raise bad(f"images of {name}", list(image.shape), "[N, 3, H, W]")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise bad(f"images of {name}", image.dtype, "torch.uint8, or floats in [0, 1]")
    low, high = torch.stack(image.aminmax()).tolist()
    if not (low >= 0 and high <= 1):  # NaN is neither
        expected = "[0, 1]: leave normalisation to the trainer, or undo it with `pixels`"
        raise bad(f"images of {name}", f"values from {low:.3g} to {high:.3g}", expected)
    return image.mul(255).round().to(torch.uint8)


def _train_ids(name: str, label: Tensor, classes: int) -> Tensor:
    """uint8 ``[N, H, W]``."""
    if label.dim() != 3 or label.is_complex() or label.dtype == torch.bool:
        raise bad(f"labels of {name}", f"{label.dtype} {list(label.shape)}", "integer train ids [N, H, W]")
    if label.is_floating_point():
        if (odd := label[label != label.round()]).numel():
            raise bad(f"labels of {name}", f"the number {odd[0].item():g}", "whole train ids [N, H, W]")
    else:
        label = label.long()  # torch compares no unsigned integers of more than 8 bits
    wrong = label[((label < 0) | (label >= classes)) & (label != IGNORE)]
    if wrong.numel():
        raise bad(f"labels of {name}", f"id {wrong[0].item()}", f"0 to {classes - 1}, or {IGNORE}")
    return label.to(torch.uint8)
