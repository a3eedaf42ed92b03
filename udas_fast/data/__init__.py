"""Datasets, geometry, loaders and photometric augmentation."""

from udas_fast.data.datasets import FileDataset, Subset, Unlabelled, open_dataset, subset
from udas_fast.data.types import CAMVID, CITYSCAPES, IGNORE, Batch, ClassSet, Sample, SegmentationDataset

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "IGNORE",
    "Batch",
    "ClassSet",
    "FileDataset",
    "Sample",
    "SegmentationDataset",
    "Subset",
    "Unlabelled",
    "open_dataset",
    "subset",
]
