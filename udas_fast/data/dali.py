"""The DALI engine: decoding, geometry and views in NVIDIA DALI, on the GPU where there is one.

DALI keeps no random state and no position here: every number that a sample needs is fed in with its file, as a
function of the draw. So a pipeline can be made anew at any step, which is what happens after a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from PIL import Image

from udas_fast.data import augment, dali_augment
from udas_fast.data.bad_files import read_or_replace
from udas_fast.data.datasets import check_sizes
from udas_fast.data.encoded import encoded_ids, encoded_image
from udas_fast.data.files import IdMap, read_ids
from udas_fast.data.geometry import Geometry, Placement, resize
from udas_fast.data.prefetch import Loaded
from udas_fast.data.sampler import Sampler
from udas_fast.data.types import IGNORE, Batch, SegmentationDataset
from udas_fast.errors import InputError


@dataclass(frozen=True)
class _Files:
    """The files of one sample as bytes; ``size`` is (H, W). ``train_ids`` where the crop is chosen by them."""

    index: int
    image: bytes
    label: bytes | None
    size: tuple[int, int]
    train_ids: np.ndarray | None = None


@dataclass(frozen=True)
class _Draw:
    """One place of a batch: the files that stand there, if any could be read, and which could not."""

    files: _Files | None
    faults: list[str]
    placement: Placement
    views: list[augment.Operations]


class DaliEngine:
    """Feeds files to a pipeline and takes batches out; ``batches`` starts at any step.

    Args:
        dataset: files that a :class:`~udas_fast.data.specs.DatasetSpec` tells how to read.
        geometry, sampler: as in :class:`udas_fast.data.TrainLoader`.
        views: K; K - 1 of them are made here.
        threads: that read files and decode.
        limit: bad files that may be skipped.
        device: where the batches are expected; on a GPU everything but the decoding of PNGs runs there.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        geometry: Geometry,
        sampler: Sampler,
        *,
        views: int,
        threads: int,
        limit: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.geometry, self.sampler = dataset, geometry, sampler
        self.views, self.threads, self.limit, self.device = views, threads, limit, device
        self.labelled = dataset.item(0).label is not None
        self.id_map = IdMap(dataset.description.ids)
        self.train_ids, self.unknown = _look_up(self.id_map, padded=geometry.crop is not None)
        self.wide = dataset.description.wide
        self._bad: dict[int, InputError] = {}  # files that only decoding showed to be bad
        self._plain: set[int] = set()  # files that Pillow can read and DALI cannot

    def batches(self, start_step: int) -> Iterator[Loaded]:
        """The batches of steps ``start_step``, ``start_step`` + 1, …, without end."""
        with ThreadPoolExecutor(self.threads) as pool:
            step = start_step
            while True:
                for draws, outputs in self._run(step, pool):
                    faults = [sentence for draw in draws for sentence in draw.faults]
                    if any(draw.files is None for draw in draws):
                        yield None, faults
                    elif isinstance(outputs, RuntimeError):
                        self._examine(draws, outputs)
                        break  # and begin again at this step
                    else:
                        yield self._batch(draws, outputs), faults
                    step += 1

    def _run(
        self, start: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[_Draw], list[torch.Tensor] | RuntimeError]]:
        """(draws, the pipeline's outputs or why there are none) of the steps from ``start`` on."""
        fed: dict[int, list[_Draw]] = {}

        def feed(iteration: int) -> tuple[list[np.ndarray], ...]:
            # An exception in here would look like the end of the data: faults travel with their draw.
            step = start + iteration
            fed[step] = list(pool.map(self._draw, self.sampler.draws(step)))
            return self._inputs(fed[step])

        pipeline = self._pipeline(feed)
        step = start
        while True:
            try:
                outputs = _tensors(pipeline.run(), self.device)
                if self.labelled and self.unknown is not None and (outputs[1] == self.unknown).any():
                    raise RuntimeError("an id outside the map")
            except RuntimeError as error:
                outputs = error
            yield fed.pop(step), outputs
            step += 1

    def _draw(self, draw: int) -> _Draw:
        sampler = self.sampler
        files, faults = read_or_replace(self._read, sampler.index(draw), sampler.length, self.limit)
        placement = sampler.place(self.geometry, draw, None if files is None else files.train_ids)
        rng = sampler.generator("views", draw)
        return _Draw(files, faults, placement, [augment.draw(rng) for _ in range(self.views - 1)])

    def _read(self, index: int) -> _Files:
        if index in self._bad:
            raise self._bad[index]
        item, plain = self.dataset.item(index), index in self._plain
        image, size = encoded_image(item.image, plain=plain)
        if item.label is None:
            return _Files(index, image, None, size)
        label, label_size = encoded_ids(item.label, wide=self.wide, plain=plain)
        check_sizes(item.label, label_size, size)
        if not self.sampler.looks_at_labels(self.geometry):
            return _Files(index, image, label, size)
        train_ids = self.id_map(read_ids(item.label, wide=self.wide), item.label)
        return _Files(index, image, label, size, train_ids)

    def _examine(self, draws: list[_Draw], error: RuntimeError) -> None:
        """Find out which file of a batch DALI could not use; Pillow's verdict holds.

        Raises InputError where DALI fails on files that Pillow can read, even on their plain pixels.
        """
        known = len(self._bad) + len(self._plain)
        for index in {draw.files.index for draw in draws}:
            try:
                self.dataset[index]
                self._plain.add(index)
            except InputError as fault:
                self._bad[index] = fault
        if len(self._bad) + len(self._plain) == known:
            names = ", ".join(str(self.dataset.item(draw.files.index).image) for draw in draws)
            reason = " ".join(str(error).split())
            raise InputError(
                f"DALI cannot use one of {names}, which are not damaged: expected the engine 'torch' ({reason})"
            ) from error

    def _inputs(self, draws: list[_Draw]) -> tuple[list[np.ndarray], ...]:
        """What the pipeline is fed for ``draws``, in the order of :meth:`_define`."""
        files = [draw.files or _NOTHING for draw in draws]
        inputs = [
            [np.frombuffer(f.image, np.uint8) for f in files],
            [np.array(draw.placement.size, np.float32) for draw in draws],
            [np.array(d.placement.size != f.size) for d, f in zip(draws, files, strict=True)],
            [np.array(draw.placement.flip, np.int32) for draw in draws],
        ]
        if self.geometry.crop is not None:
            inputs.append([np.array(draw.placement.start, np.int32) for draw in draws])
        if self.labelled:
            tables = [d.placement.nearest(f.size) for d, f in zip(draws, files, strict=True)]
            inputs.append([np.frombuffer(f.label, np.uint8) for f in files])
            inputs += [[table[axis] for table in tables] for axis in (0, 1)]
        for k in range(self.views - 1):
            inputs.append([dali_augment.encode(draw.views[k]) for draw in draws])
        return tuple(inputs)

    def _pipeline(self, feed: object) -> Pipeline:
        kinds = [(types.UINT8, 1), (types.FLOAT, 1), (types.BOOL, 0), (types.INT32, 0)]
        kinds += [(types.INT32, 1)] if self.geometry.crop is not None else []
        kinds += [(types.UINT8, 1), (types.INT32, 1), (types.INT32, 1)] if self.labelled else []
        kinds += [(types.INT32, 2)] * (self.views - 1)
        dtypes, ndims = [kind[0] for kind in kinds], [kind[1] for kind in kinds]

        def graph() -> tuple[DataNode, ...]:
            return self._define(
                list(fn.external_source(feed, num_outputs=len(kinds), dtype=dtypes, ndim=ndims))
            )

        pipeline = pipeline_def(graph, enable_conditionals=True)(
            batch_size=self.sampler.batch_size,
            num_threads=self.threads,
            device_id=self.device.index,  # None for the CPU
            prefetch_queue_depth=2,
        )
        pipeline.build()
        return pipeline

    def _define(self, inputs: list[DataNode]) -> tuple[DataNode, ...]:
        """The graph: image, then label with ``unknown`` for undeclared ids, then the views."""
        gpu = self.device.type == "cuda"
        data, size, resized, flip, *rest = inputs
        image = fn.decoders.image(
            data, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=False
        )
        if resized:  # DALI would compute every pixel of an image that keeps its size
            image = _resize(image, size, gpu)
        padded = self.geometry.crop is not None
        if padded:
            start, *rest = rest
            cut = {"start": start, "shape": self.geometry.crop, "axes": [0, 1]}
            image = fn.slice(image, **cut, out_of_bounds_policy="pad", fill_values=0)
        outputs = [_finished(image, flip)]
        if self.labelled:
            encoded, rows, columns, *rest = rest
            ids = _ids(encoded, rows, columns, resized, self.wide, padded)
            ids = ids.gpu() if gpu else ids
            every, train_ids = list(range(256)), self.train_ids.tolist()
            label = fn.lookup_table(ids, keys=every, values=train_ids, dtype=types.UINT8)
            outputs.append(fn.flip(label, horizontal=flip))
        strong = [_finished(dali_augment.augment(image, numbers), flip) for numbers in rest]
        return (*outputs, *([fn.stack(*strong)] if strong else []))

    def _batch(self, draws: list[_Draw], outputs: list[torch.Tensor]) -> Batch:
        image, *rest = outputs
        label = rest[0][..., 0] if self.labelled else None
        views = rest[-1] if self.views > 1 else None
        ids = [self.dataset.item(draw.files.index).id for draw in draws]
        return Batch(image, label, ids, views, [draw.placement for draw in draws])


# Stands where no file could be read; the batch is never handed out.
_NOTHING = _Files(-1, b"P6\n1 1\n255\n\0\0\0", b"P5\n1 1\n255\n\xff", (1, 1))


def _resize(image: DataNode, size: DataNode, gpu: bool) -> DataNode:
    """Bilinear; on a CPU by torch, which takes a third of DALI's time.

    DALI repeats the border where torch leaves out what lies beyond the image: so on a GPU the outermost pixels
    of an image that is made smaller differ.
    """
    if gpu:
        return fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.python_function(image, size, function=_resized, output_layouts="HWC")


def _resized(image: np.ndarray, size: np.ndarray) -> np.ndarray:
    return resize(image, (int(size[0]), int(size[1])), Image.Resampling.BILINEAR)


def _finished(image: DataNode, flip: DataNode) -> DataNode:
    return fn.crop_mirror_normalize(
        image, mirror=flip, mean=[0.0], std=[1.0], dtype=types.UINT8, output_layout="CHW"
    )


def _ids(
    encoded: DataNode, rows: DataNode, columns: DataNode, resized: DataNode, wide: bool, padded: bool
) -> DataNode:
    """The ids in a label file after the cut, HWC with one channel, in the host's memory."""
    ids = fn.decoders.image(
        encoded,
        output_type=types.ANY_DATA,
        dtype=types.UINT16 if wide else types.UINT8,
        adjust_orientation=False,
    )
    if wide:
        ids = fn.cast(ids[:, :, 0:1], dtype=types.UINT8)  # above 255 is 255
    if padded:
        # A row and a column of 255 after the last: where the tables send what lies beyond the image.
        end = ids.shape(dtype=types.INT32)[0:2] + 1
        ids = fn.slice(
            ids, start=[0, 0], end=end, axes=[0, 1], out_of_bounds_policy="pad", fill_values=IGNORE
        )
        ids = _pick(ids, rows, columns)
    elif resized:
        ids = _pick(ids, rows, columns)
    return ids


def _pick(ids: DataNode, rows: DataNode, columns: DataNode) -> DataNode:
    """``ids[rows][:, columns]``, HWC: exact where a resize would decide ties by its own rounding."""
    return fn.python_function(ids, rows, columns, function=_picked, output_layouts="HWC")


def _picked(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return ids.take(rows, 0).take(columns, 1)  # a fifth of the time of indexing, of DALI's own means a tenth


def _look_up(id_map: IdMap, padded: bool) -> tuple[np.ndarray, int | None]:
    """The train id of each id, undeclared ones marked by a byte that is no train id; and that byte, if any."""
    declared = id_map.declared | (padded & (np.arange(256) == IGNORE))
    if declared.all():
        return id_map.table, None
    mark = int(np.setdiff1d(np.arange(256), id_map.table[declared])[-1])
    return np.where(declared, id_map.table, mark), mark


def _tensors(outputs: tuple, device: torch.device) -> list[torch.Tensor]:
    """A pipeline's outputs. On a CPU they are DALI's own memory, which it does not use again before they die."""
    tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
    if device.type == "cuda":
        # Copies: DALI would reuse its memory without regard to the streams on which torch still reads it.
        tensors = [tensor.clone() for tensor in tensors]
        torch.cuda.current_stream(device).synchronize()  # in the reading thread: training does not wait here
    return tensors
