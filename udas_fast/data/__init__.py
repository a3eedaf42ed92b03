"""Datasets, geometry, loaders and photometric augmentation."""

from udas_fast.data.augment import auto_augment
from udas_fast.data.check import DatasetReport, check_dataset
from udas_fast.data.datasets import FileDataset, Subset, Unlabelled, open_dataset, subset
from udas_fast.data.geometry import Geometry
from udas_fast.data.loader import Stream, evaluation_batches
from udas_fast.data.types import CAMVID, CITYSCAPES, IGNORE, Batch, ClassSet, Sample, SegmentationDataset

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "IGNORE",
    "Batch",
    "ClassSet",
    "DatasetReport",
    "FileDataset",
    "Geometry",
    "Sample",
    "SegmentationDataset",
    "Stream",
    "Subset",
    "Unlabelled",
    "auto_augment",
    "check_dataset",
    "evaluation_batches",
    "open_dataset",
    "subset",
]
