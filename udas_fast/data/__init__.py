"""Datasets, geometry, loaders and photometric augmentation."""

from udas_fast.data.types import CAMVID, CITYSCAPES, IGNORE, Batch, ClassSet, Sample, SegmentationDataset

__all__ = ["CAMVID", "CITYSCAPES", "IGNORE", "Batch", "ClassSet", "Sample", "SegmentationDataset"]
