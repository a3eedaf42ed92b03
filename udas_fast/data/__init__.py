"""Datasets, geometry, loaders and photometric augmentation."""

from udas_fast.data.augment import auto_augment
from udas_fast.data.bad_files import BadFile, BadFiles
from udas_fast.data.check import DatasetReport, check_dataset
from udas_fast.data.datasets import (
    FileDataset,
    Subset,
    Unlabelled,
    has_labels,
    open_dataset,
    subset,
    with_labels,
)
from udas_fast.data.files import IMAGE_SUFFIXES, read_image
from udas_fast.data.geometry import Geometry, resize
from udas_fast.data.loader import ENGINES, TrainLoader, choose_engine, evaluation_batches
from udas_fast.data.pseudo_labels import PseudoLabelled, PseudoLabels
from udas_fast.data.sampler import RareClasses
from udas_fast.data.types import CAMVID, CITYSCAPES, IGNORE, Batch, ClassSet, Sample, SegmentationDataset
from udas_fast.data.user_loader import UserLoader, UserTrainLoader

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "ENGINES",
    "IGNORE",
    "IMAGE_SUFFIXES",
    "BadFile",
    "BadFiles",
    "Batch",
    "ClassSet",
    "DatasetReport",
    "FileDataset",
    "Geometry",
    "PseudoLabelled",
    "PseudoLabels",
    "RareClasses",
    "Sample",
    "SegmentationDataset",
    "Subset",
    "TrainLoader",
    "Unlabelled",
    "UserLoader",
    "UserTrainLoader",
    "auto_augment",
    "check_dataset",
    "choose_engine",
    "evaluation_batches",
    "has_labels",
    "open_dataset",
    "read_image",
    "resize",
    "subset",
    "with_labels",
]
