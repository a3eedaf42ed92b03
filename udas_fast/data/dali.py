"""DALI engine: decoding, geometry and views in NVIDIA DALI, on the GPU if there is one.

DALI keeps no random state and no position here: every number that a sample needs is passed in with its file, as a
function of the draw. So a pipeline can be rebuilt at any step, which is done after an unreadable file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType
from PIL import Image

from udas_fast.data import augment, dali_augment
from udas_fast.data.bad_files import read_or_replace
from udas_fast.data.classes import IGNORE
from udas_fast.data.datasets import check_sizes
from udas_fast.data.files import encoded_image
from udas_fast.data.geometry import Geometry, SampledGeometry, resize
from udas_fast.data.labels import IdMap, encoded_label, read_label
from udas_fast.data.sampler import Sampler
from udas_fast.data.types import Batch, LoadResult, SegmentationDataset
from udas_fast.errors import InputError, bad

Inputs = tuple[list[np.ndarray], ...]
"""One list for each input of the pipeline, with an array for each sample."""


@dataclass(frozen=True)
class _EncodedSample:
    """The files of sample ``index`` as bytes, ``label`` empty without labels; ``size`` is (H, W) of both.

    ``train_ids`` holds the label at native size if the crop depends on it.
    """

    index: int
    image: bytes
    label: bytes
    size: tuple[int, int]
    train_ids: np.ndarray | None = None
    label_size: tuple[int, int] | None = None


# Takes the place of a sample that could not be read; its batch is never returned.
_PLACEHOLDER = _EncodedSample(-1, b"P6\n1 1\n255\n\0\0\0", b"P5\n1 1\n255\n\xff", (1, 1))


@dataclass(frozen=True)
class _Draw:
    """One place of a batch: its sample, None if none could be read, and a message for each unreadable file."""

    sample: _EncodedSample | None
    messages: list[str]
    geometry: SampledGeometry
    views: list[augment.Operations]


class DaliEngine:
    """Source of training batches that are read by a DALI pipeline; :meth:`batches` starts at any step.

    Args:
        dataset: its ``spec`` describes the files.
        geometry: as in :class:`udas_fast.data.TrainLoader`.
        sampler: chooses images and random numbers.
        views: kinds of the augmented views that are made here.
        threads: number of threads that read files and decode.
        max_bad_files: number of bad files that may be skipped.
        device: of the batches; on a GPU everything but the decoding of PNGs runs there.

    Raises:
        InputError: the dataset has no files.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        geometry: Geometry,
        sampler: Sampler,
        *,
        views: Sequence[augment.ViewKind],
        threads: int,
        max_bad_files: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.geometry, self.sampler = dataset, geometry, sampler
        self.views, self.threads, self.device = views, threads, device
        self.max_bad_files = max_bad_files
        if dataset.spec is None:
            raise bad("data engine 'dali'", f"{dataset.name}, which has no files", "a dataset on disk")
        self.labelled = dataset.files(0).label is not None
        self.id_map = IdMap(dataset.spec.id_to_train_id, dataset.spec.colour_to_train_id)
        self.train_ids, self.undeclared = _lookup_table(self.id_map, padded=geometry.crop is not None)
        self.rgb16, self.bit_depth = dataset.spec.rgb16, dataset.spec.bit_depth
        self.resize_labels = dataset.spec.resize_labels
        self._bad: dict[int, InputError] = {}  # samples that proved bad only when decoded
        self._as_pixels: set[int] = set()  # samples that Pillow can read and DALI cannot

    def batches(self, start_step: int) -> Iterator[LoadResult]:
        """Yield the batches of steps ``start_step``, ``start_step`` + 1, …, without end."""
        with ThreadPoolExecutor(self.threads) as pool:
            step = start_step
            while True:
                for draws, outputs in self._run(step, pool):
                    messages = [message for draw in draws for message in draw.messages]
                    samples = [draw.sample for draw in draws if draw.sample is not None]
                    if len(samples) < len(draws):
                        yield None, messages
                    elif isinstance(outputs, RuntimeError):
                        self._examine(samples, outputs)
                        break  # and rebuild the pipeline at this step
                    else:
                        geometries = [draw.geometry for draw in draws]
                        yield self._batch(samples, geometries, outputs), messages
                    step += 1

    def _run(
        self, start: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[_Draw], list[torch.Tensor] | RuntimeError]]:
        """Yield (draws, the pipeline's outputs or the reason why there are none) of the steps from ``start`` on."""
        fed: dict[int, list[_Draw]] = {}

        def feed(iteration: int) -> Inputs:
            # An exception here would look like the end of the data, so messages travel with their draw.
            step = start + iteration
            fed[step] = list(pool.map(self._draw, self.sampler.draws(step)))
            return self._inputs(fed[step])

        pipeline = self._pipeline(feed)
        step = start
        while True:
            outputs: list[torch.Tensor] | RuntimeError
            try:
                outputs = _to_tensors(pipeline.run(), self.device)
                if self.labelled and self.undeclared is not None and (outputs[1] == self.undeclared).any():
                    raise RuntimeError("an id outside the map")
            except RuntimeError as error:
                outputs = error
            yield fed.pop(step), outputs
            step += 1

    def _draw(self, draw: int) -> _Draw:
        sampler = self.sampler
        sample, messages = read_or_replace(
            self._read, sampler.image_index(draw), sampler.length, self.max_bad_files
        )
        train_ids = None if sample is None else sample.train_ids
        geometry = sampler.sample_geometry(self.geometry, draw, train_ids)
        rng = sampler.generator("views", draw)
        return _Draw(sample, messages, geometry, [augment.draw(rng, kind) for kind in self.views])

    def _read(self, index: int) -> _EncodedSample:
        if index in self._bad:
            raise self._bad[index]
        files, as_pixels = self.dataset.files(index), index in self._as_pixels
        image, size = encoded_image(files.image, bit_depth=self.bit_depth, as_pixels=as_pixels)
        if files.label is None:
            return _EncodedSample(index, image, b"", size)
        label, label_size = encoded_label(files.label, self.id_map, rgb16=self.rgb16, as_pixels=as_pixels)
        if not self.resize_labels:
            check_sizes(files, label_size, size)
        train_ids = None
        if self.sampler.needs_labels(self.geometry):
            train_ids = read_label(files.label, self.id_map, rgb16=self.rgb16)
            train_ids = resize(train_ids, size, Image.Resampling.NEAREST)
        return _EncodedSample(index, image, label, size, train_ids, label_size)

    def _examine(self, samples: list[_EncodedSample], error: RuntimeError) -> None:
        """Find the files of a batch that DALI could not use; a file is bad if Pillow cannot read it either.

        Raises:
            InputError: DALI fails on files that Pillow can read, even on their pixels.
        """
        known = len(self._bad) + len(self._as_pixels)
        for index in {sample.index for sample in samples}:
            try:
                self.dataset[index]
                self._as_pixels.add(index)
            except InputError as reason:
                self._bad[index] = reason
        if len(self._bad) + len(self._as_pixels) == known:
            names = ", ".join(str(self.dataset.files(sample.index).image) for sample in samples)
            reasons = " ".join(str(error).split())
            raise InputError(
                f"DALI cannot use one of {names}, which are not damaged: expected the engine 'torch' ({reasons})"
            ) from error

    def _inputs(self, draws: list[_Draw]) -> Inputs:
        """Return the pipeline's inputs for ``draws``, in the order of :meth:`_define`."""
        samples = [draw.sample or _PLACEHOLDER for draw in draws]
        geometries = [draw.geometry for draw in draws]
        inputs: list[list[np.ndarray]] = [
            [np.frombuffer(sample.image, np.uint8) for sample in samples],
            [np.array(geometry.size, np.float32) for geometry in geometries],
            [
                np.array(not g.size == s.size == (s.label_size or s.size))
                for g, s in zip(geometries, samples, strict=True)
            ],
            [np.array(geometry.flip, np.int32) for geometry in geometries],
        ]
        if self.geometry.crop is not None:
            inputs.append([np.array(geometry.start, np.int32) for geometry in geometries])
        if self.labelled:
            tables = [_label_indices(g, s) for g, s in zip(geometries, samples, strict=True)]
            inputs.append([np.frombuffer(sample.label, np.uint8) for sample in samples])
            inputs += [[table[axis] for table in tables] for axis in (0, 1)]
        for k in range(len(self.views)):
            inputs.append([dali_augment.encode(draw.views[k]) for draw in draws])
        return tuple(inputs)

    def _pipeline(self, feed: Callable[[int], Inputs]) -> Pipeline:
        uint8, int32 = DALIDataType.UINT8, DALIDataType.INT32
        kinds = [(uint8, 1), (DALIDataType.FLOAT, 1), (DALIDataType.BOOL, 0), (int32, 0)]
        kinds += [(int32, 1)] if self.geometry.crop is not None else []
        kinds += [(uint8, 1), (int32, 1), (int32, 1)] if self.labelled else []
        kinds += [(int32, 2)] * len(self.views)
        dtypes, ndims = [kind[0] for kind in kinds], [kind[1] for kind in kinds]

        def graph() -> tuple[DataNode, ...]:
            inputs = fn.external_source(feed, num_outputs=len(kinds), dtype=dtypes, ndim=ndims)
            return self._define(list(inputs))

        pipeline = pipeline_def(enable_conditionals=True)(graph)(
            batch_size=self.sampler.batch_size,
            num_threads=self.threads,
            device_id=self.device.index,  # None for the CPU
            prefetch_queue_depth=2,
        )
        pipeline.build()
        return pipeline

    def _define(self, inputs: list[DataNode]) -> tuple[DataNode, ...]:
        """Build the graph: image, then label with ``undeclared`` for ids outside the map, then the views."""
        gpu = self.device.type == "cuda"
        data, size, resized, flip, *rest = inputs
        image = fn.decoders.image(
            data,
            device="mixed" if gpu else "cpu",
            output_type=DALIImageType.RGB,
            adjust_orientation=False,
        )
        if resized:  # otherwise DALI would compute every pixel of an image that keeps its size
            image = _resize(image, size, gpu)
        padded = self.geometry.crop is not None
        if padded:
            start, *rest = rest
            image = fn.slice(
                image,
                start=start,
                shape=self.geometry.crop,
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        outputs = [_flip_and_transpose(image, flip)]
        if self.labelled:
            encoded, rows, columns, *rest = rest
            ids = _decode_ids(encoded, rows, columns, resized, self.rgb16, padded)
            ids = ids.gpu() if gpu else ids
            every, train_ids = list(range(256)), self.train_ids.tolist()
            label = fn.lookup_table(ids, keys=every, values=train_ids, dtype=DALIDataType.UINT8)
            outputs.append(fn.flip(label, horizontal=flip))
        views = [_flip_and_transpose(dali_augment.augment(image, numbers), flip) for numbers in rest]
        return (*outputs, *([fn.stack(*views)] if views else []))

    def _batch(
        self,
        samples: list[_EncodedSample],
        geometries: list[SampledGeometry],
        outputs: list[torch.Tensor],
    ) -> Batch:
        image, *rest = outputs
        label = rest[0][..., 0] if self.labelled else None
        views = rest[-1] if self.views else None
        ids = [self.dataset.files(sample.index).id for sample in samples]
        return Batch(image, label, ids, views, geometries)


def _label_indices(geometry: SampledGeometry, sample: _EncodedSample) -> tuple[np.ndarray, np.ndarray]:
    """Return :meth:`SampledGeometry.nearest_indices` of a label, which is resized to its image's size first."""
    rows, columns = geometry.nearest_indices(sample.size)
    if sample.label_size in (None, sample.size):
        return rows, columns
    assert sample.label_size is not None
    first = SampledGeometry(sample.size, (0, 0), sample.size, flip=False).nearest_indices(sample.label_size)
    height, width = (
        np.append(table, np.int32(side)) for table, side in zip(first, sample.label_size, strict=True)
    )
    return height[rows], width[columns]


def _resize(image: DataNode, size: DataNode, gpu: bool) -> DataNode:
    """Resize bilinearly; on a CPU by torch, which takes a third of DALI's time.

    DALI repeats the border where torch omits what lies beyond the image: so on a GPU the outermost pixels
    of an image that is made smaller differ.
    """
    if gpu:
        resized = fn.resize(image, size=size, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
        return cast(DataNode, resized)  # its annotation also allows the outputs of other options
    return _python_function(_torch_resize, image, size)


def _torch_resize(image: np.ndarray, size: np.ndarray) -> np.ndarray:
    return resize(image, (int(size[0]), int(size[1])), Image.Resampling.BILINEAR)


def _flip_and_transpose(image: DataNode, flip: DataNode) -> DataNode:
    return fn.crop_mirror_normalize(
        image, mirror=flip, mean=[0.0], std=[1.0], dtype=DALIDataType.UINT8, output_layout="CHW"
    )


def _decode_ids(
    encoded: DataNode, rows: DataNode, columns: DataNode, resized: DataNode, rgb16: bool, padded: bool
) -> DataNode:
    """Return the ids in a label file after the crop, HWC with one channel, in the host's memory."""
    ids = fn.decoders.image(
        encoded,
        output_type=DALIImageType.ANY_DATA,
        dtype=DALIDataType.UINT16 if rgb16 else DALIDataType.UINT8,
        adjust_orientation=False,
    )
    if rgb16:
        ids = fn.cast(ids[:, :, 0:1], dtype=DALIDataType.UINT8)  # saturates at 255
    if padded:
        # A row and a column of 255 after the last: the tables map what lies beyond the image to them.
        end = ids.shape(dtype=DALIDataType.INT32)[0:2] + 1
        ids = fn.slice(
            ids, start=[0, 0], end=end, axes=[0, 1], out_of_bounds_policy="pad", fill_values=IGNORE
        )
        ids = _select(ids, rows, columns)
    elif resized:
        ids = _select(ids, rows, columns)
    return ids


def _select(ids: DataNode, rows: DataNode, columns: DataNode) -> DataNode:
    """Return ``ids[rows][:, columns]``, HWC: exact where DALI's resize would decide ties by its own rounding."""
    return _python_function(_numpy_select, ids, rows, columns)


def _numpy_select(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    # a fifth of the time of indexing, a tenth of DALI's own operators
    return ids.take(rows, 0).take(columns, 1)


def _python_function(function: Callable[..., np.ndarray], *inputs: DataNode) -> DataNode:
    return fn.python_function(*inputs, function=function, output_layouts="HWC")


def _lookup_table(id_map: IdMap, padded: bool) -> tuple[np.ndarray, int | None]:
    """Return the train id of each byte of a label, and the byte that marks undeclared ids; None if all are declared."""
    if not id_map.in_bytes:
        return np.arange(256, dtype=np.uint8), None  # labels come as train ids
    table, declared = id_map.table[:256], id_map.declared[:256] | (padded & (np.arange(256) == IGNORE))
    if declared.all():
        return table, None
    mark = int(np.setdiff1d(np.arange(256), table[declared])[-1])
    return np.where(declared, table, mark), mark


def _to_tensors(outputs: tuple, device: torch.device) -> list[torch.Tensor]:
    """Return a pipeline's outputs; on a CPU they share DALI's memory, which it does not reuse while they exist."""
    tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
    if device.type == "cuda":
        # Copies: DALI would reuse its memory without regard to the streams on which torch still reads it.
        tensors = [tensor.clone() for tensor in tensors]
        torch.cuda.current_stream(device).synchronize()  # in the reading thread: training does not wait here
    return tensors
