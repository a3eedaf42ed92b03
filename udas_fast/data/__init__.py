"""Datasets, geometry, loaders and photometric augmentation."""

from udas_fast.data.augment import auto_augment
from udas_fast.data.bad_files import BadFile, BadFiles, LoaderStopped
from udas_fast.data.check import DatasetReport, check_dataset, listed
from udas_fast.data.class_weights import class_weights
from udas_fast.data.classes import CAMVID, CITYSCAPES, IGNORE, ClassSet
from udas_fast.data.datasets import FileDataset, Subset, Unlabelled, subset, with_labels
from udas_fast.data.factory import KINDS, describe_kinds, has_labels, names_of, open_dataset, unmatched_labels
from udas_fast.data.files import IMAGE_SUFFIXES, find_bit_depth, read_image
from udas_fast.data.geometry import Geometry, resize
from udas_fast.data.loader import ENGINES, TrainLoader, choose_engine, evaluation_batches
from udas_fast.data.pseudo_labels import PseudoLabelDataset, PseudoLabelFolder
from udas_fast.data.sampler import RareClasses
from udas_fast.data.task import read_task, unknown_names, with_classes
from udas_fast.data.types import Batch, Sample, SampleFiles, SegmentationDataset
from udas_fast.data.user_loader import UserLoader, UserTrainLoader

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "ENGINES",
    "IGNORE",
    "IMAGE_SUFFIXES",
    "KINDS",
    "BadFile",
    "BadFiles",
    "Batch",
    "ClassSet",
    "DatasetReport",
    "FileDataset",
    "Geometry",
    "LoaderStopped",
    "PseudoLabelDataset",
    "PseudoLabelFolder",
    "RareClasses",
    "Sample",
    "SampleFiles",
    "SegmentationDataset",
    "Subset",
    "TrainLoader",
    "Unlabelled",
    "UserLoader",
    "UserTrainLoader",
    "auto_augment",
    "check_dataset",
    "choose_engine",
    "class_weights",
    "describe_kinds",
    "evaluation_batches",
    "find_bit_depth",
    "has_labels",
    "listed",
    "names_of",
    "open_dataset",
    "read_image",
    "read_task",
    "resize",
    "subset",
    "unknown_names",
    "unmatched_labels",
    "with_classes",
    "with_labels",
]
