"""The policy of :mod:`udas_fast.data.augment` in DALI's own auto_aug operations.

What happens to an image is drawn outside, by the stream's generators, and only carried out here: so views are
a function of (seed, name, draw), and no two draws can share a random state.
"""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.auto_aug import augmentations as dali
from nvidia.dali.auto_aug.core import augmentation, select
from nvidia.dali.data_node import DataNode

from udas_fast.data.augment import POLICY, Operations

_LEVELS = np.arange(10)
_FACTORS = 0.1 + 1.8 * _LEVELS / 9


def _unchanged(magnitude: float) -> float:
    return magnitude


def _enhancement(operation: object) -> object:
    """An operation with factors 0.1 to 1.9 by level, without DALI's random sign."""
    return operation.augmentation(mag_range=_FACTORS, mag_to_param=_unchanged, randomly_negate=False)


@augmentation(mag_range=_FACTORS, mag_to_param=dali.sharpness_kernel_shifted, param_device="auto")
def _sharpness(data: DataNode, kernel: DataNode) -> DataNode:
    """DALI's, but with the rim computed from repeated pixels where Pillow leaves it as it is."""
    return fn.filter(data, kernel, border="clamp")


@augmentation(mag_range=_FACTORS)
def _color(data: DataNode, factor: DataNode) -> DataNode:
    """Pillow's: a blend with the rounded grey image, in 16 bits.

    On a CPU a matrix for each pixel takes five times as long, and so does turning float32 into bytes.
    """
    grey = fn.color_space_conversion(data, image_type=types.RGB, output_type=types.GRAY)
    grey = fn.color_space_conversion(grey, image_type=types.GRAY, output_type=types.RGB)
    grey = fn.brightness(grey, brightness=factor - 1, dtype=types.INT16)
    return fn.cast_like(fn.brightness(data, brightness=factor, dtype=types.INT16) - grey, data)


@augmentation(mag_range=_FACTORS)
def _contrast(data: DataNode, factor: DataNode) -> DataNode:
    """DALI's, a blend with the image's mean grey, without a float32 image on the way."""
    luma = types.Constant([0.299, 0.587, 0.114], device="cpu")
    grey = fn.reductions.sum(fn.reductions.mean(data, axis_names="HW").cpu() * luma)
    return fn.contrast(data, contrast=factor, contrast_center=grey)


@augmentation(mag_range=256 - np.round(256 * _LEVELS / 9), mag_to_param=np.uint16, param_device="auto")
def _solarize(data: DataNode, threshold: DataNode) -> DataNode:
    """Inverting is an exclusive or with 255: half of the work of DALI's."""
    return data ^ ((data >= threshold) * types.Constant(255, dtype=types.UINT8))


@augmentation
def _equalize(data: DataNode, _: object) -> DataNode:
    """Pillow's formula: DALI's is OpenCV's, which leaves out the darkest value where Pillow's does the brightest."""
    white = types.Constant(255, dtype=types.UINT8)
    return white - fn.equalize(white - data)


_AUGMENTATIONS = {
    "autocontrast": dali.auto_contrast,
    "brightness": _enhancement(dali.brightness),
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": dali.invert,
    "posterize": dali.posterize.augmentation(mag_range=8 - np.round(4 * _LEVELS / 9)),
    "sharpness": _sharpness,
    "solarize": _solarize,
}
# Only what the policy uses: every one costs a little, chosen or not.
_NAMES = ["identity", *sorted({name for sub in POLICY for name, _, _ in sub})]
_CHOICES = [_AUGMENTATIONS.get(name, dali.identity) for name in _NAMES]
STAGES = max(map(len, POLICY))


def encode(operations: Operations) -> np.ndarray:
    """``operations`` as numbers for :func:`augment`: int32 ``[STAGES, 2]`` of (operation, level)."""
    numbers = np.zeros((STAGES, 2), np.int32)
    for stage, (name, level) in enumerate(operations):
        numbers[stage] = _NAMES.index(name), level
    return numbers


def augment(image: DataNode, numbers: DataNode) -> DataNode:
    """One view of uint8 HWC ``image``, with ``numbers`` from :func:`encode`; needs ``enable_conditionals``."""
    for stage in range(STAGES):
        image = select(
            _CHOICES,
            numbers[stage, 0],
            data=image,
            magnitude_bin=numbers[stage, 1],
            num_magnitude_bins=len(_LEVELS),
        )
    return image
