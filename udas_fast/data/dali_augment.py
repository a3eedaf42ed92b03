"""The policy of :mod:`udas_fast.data.augment` in DALI's own auto_aug operations.

The operations of an image are drawn outside, by the loader's generators, and only executed here: so views are
a function of (seed, name, draw), and no two draws can share a random state.
"""

from __future__ import annotations

import itertools

import numpy as np
from nvidia.dali import fn
from nvidia.dali.auto_aug import augmentations as dali
from nvidia.dali.auto_aug.core import augmentation, select
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import Constant, DALIDataType, DALIImageType

from udas_fast.data.augment import PHOTOMETRIC, Operations

_LEVELS = np.arange(10)
_FACTORS = 0.1 + 1.8 * _LEVELS / 9


@augmentation(mag_range=_FACTORS, mag_to_param=dali.sharpness_kernel_shifted, param_device="auto")
def _sharpness(data: DataNode, kernel: DataNode) -> DataNode:
    """Sharpen as DALI does; the rim is computed from repeated pixels, whereas Pillow leaves it unchanged."""
    return fn.filter(data, kernel, border="clamp")


@augmentation(mag_range=_FACTORS)
def _color(data: DataNode, factor: DataNode) -> DataNode:
    """Blend with the rounded grey image as Pillow does, in 16 bits.

    On a CPU a matrix for each pixel takes five times as long, and so does conversion from float32 to bytes.
    """
    grey = fn.color_space_conversion(data, image_type=DALIImageType.RGB, output_type=DALIImageType.GRAY)
    grey = fn.color_space_conversion(grey, image_type=DALIImageType.GRAY, output_type=DALIImageType.RGB)
    grey = fn.brightness(grey, brightness=factor - 1, dtype=DALIDataType.INT16)
    return fn.cast_like(fn.brightness(data, brightness=factor, dtype=DALIDataType.INT16) - grey, data)


@augmentation(mag_range=_FACTORS)
def _contrast(data: DataNode, factor: DataNode) -> DataNode:
    """Blend with the image's mean grey as DALI does, without an intermediate float32 image."""
    luma = Constant([0.299, 0.587, 0.114], device="cpu")
    grey = fn.reductions.sum(fn.reductions.mean(data, axis_names="HW").cpu() * luma)
    return fn.contrast(data, contrast=factor, contrast_center=grey)


@augmentation
def _autocontrast(data: DataNode, _: object) -> DataNode:
    """Stretch the contrast as DALI does, in one pass over the pixels after the two that find the extremes."""
    low = fn.reductions.min(data, axis_names="HW").cpu()
    high = fn.reductions.max(data, axis_names="HW").cpu()
    # A channel of one value has no contrast to stretch and stays as it is.
    flat = low == high
    width = high - low + flat * Constant(255, dtype=DALIDataType.UINT8)
    return fn.crop_mirror_normalize(
        data,
        mean=fn.cast(low * (flat ^ True), dtype=DALIDataType.FLOAT),
        std=width / 255,
        dtype=DALIDataType.UINT8,
        output_layout="HWC",
    )


@augmentation(mag_range=256 - np.round(256 * _LEVELS / 9), mag_to_param=np.uint16, param_device="auto")
def _solarize(data: DataNode, threshold: DataNode) -> DataNode:
    """Invert by an exclusive or with 255, half of the work of DALI's solarize."""
    return data ^ ((data >= threshold) * Constant(255, dtype=DALIDataType.UINT8))


@augmentation
def _equalize(data: DataNode, _: object) -> DataNode:
    """Equalize by Pillow's formula, which omits the brightest value; DALI and OpenCV omit the darkest."""
    white = Constant(255, dtype=DALIDataType.UINT8)
    return white - fn.equalize(white - data)


_AUGMENTATIONS = {
    "autocontrast": _autocontrast,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "identity": dali.identity,
    "posterize": dali.posterize.augmentation(mag_range=8 - np.round(4 * _LEVELS / 9)),
    "sharpness": _sharpness,
    "solarize": _solarize,
}


def _named(name: str, level: int) -> tuple[str, int]:
    """Return the operation in :data:`_AUGMENTATIONS` and its level: inverting is solarizing from 0 on."""
    return ("solarize", 9) if name == "invert" else (name, level)


# The operations that can be first and second in a sub-policy, no more: every choice has a cost, chosen or not.
_STAGES = [
    ["identity", *sorted({_named(*sub[i][::2])[0] for sub in PHOTOMETRIC if len(sub) > i})]
    for i in range(max(map(len, PHOTOMETRIC)))
]


def encode(operations: Operations) -> np.ndarray:
    """Encode ``operations`` as numbers for :func:`augment`: int32 ``[stages, 2]`` of (operation, level)."""
    numbers = np.zeros((len(_STAGES), 2), np.int32)
    stage = 0
    for name, level in itertools.starmap(_named, operations):
        while name not in _STAGES[stage]:  # the first operation of its sub-policy was not selected
            stage += 1
        numbers[stage] = _STAGES[stage].index(name), level
        stage += 1
    return numbers


def augment(image: DataNode, numbers: DataNode) -> DataNode:
    """Return a view of uint8 HWC ``image`` by ``numbers`` from :func:`encode`; needs ``enable_conditionals``."""
    for stage, names in enumerate(_STAGES):
        image = select(
            [_AUGMENTATIONS[name] for name in names],
            numbers[stage, 0],
            data=image,
            magnitude_bin=numbers[stage, 1],
            num_magnitude_bins=len(_LEVELS),
        )
    return image
