"""A recipe's view of its images: sizes, crops, batches, and how often rare classes are drawn."""

from __future__ import annotations

from dataclasses import asdict, field, replace
from typing import Annotated

from pydantic import Field

from udas_fast import distributed
from udas_fast.config import BatchSize, config_dataclass
from udas_fast.data.geometry import Geometry


@config_dataclass
class RareClassConfig:
    """Source images drawn by the classes that they show (:class:`udas_fast.data.RareClasses`)."""

    temperature: Annotated[float, Field(gt=0)] = 0.01  # DAFormer
    # DAFormer: pixels of a class, of GTA5's 1914 × 1052, that an image needs; scales with its area.
    min_pixels: Annotated[int, Field(gt=0)] = 3000
    # DAFormer: part of min_pixels that a crop shows, of images resized to 720 × 1280; scales with that size.
    min_crop_ratio: Annotated[float, Field(ge=0)] = 0.5
    labelled: bool = False  # labelled target images too


@config_dataclass
class StreamBatchSize:
    """Batch sizes of single streams, over all processes; None: :attr:`InputConfig.batch_size`."""

    source: BatchSize | None = None
    labelled: BatchSize | None = None
    unlabelled: BatchSize | None = None


@config_dataclass
class InputConfig:
    """Images as the network sees them. Labelled target images that are mixed with the source take its geometry."""

    source: Geometry = field(default_factory=lambda: Geometry(size=(720, 1280)))  # AdaptSegNet
    target: Geometry = field(default_factory=lambda: Geometry(size=(512, 1024)))  # AdaptSegNet
    batch_size: BatchSize = 1  # of each stream in a step, over all processes
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


def batch_size_per_process(inputs: InputConfig, stream: str) -> int:
    """Return this process's part of a batch of ``stream``; raises InputError where it does not divide."""
    own = getattr(inputs.stream_batch_size, stream) is not None
    key = f"input.stream_batch_size.{stream}" if own else "input.batch_size"
    return distributed.per_rank(inputs.batch_size_of(stream), key)
