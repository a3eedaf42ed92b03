"""The fused operators: upsampling, softmax, loss and gradient in one pass, on low-resolution logits.

Each has a same-named plain-PyTorch twin in :mod:`udas_fast.ops.reference`, which also runs where an operator
is not compiled for a device; :func:`backends` says where that is.
"""

from udas_fast.ops._library import backends
from udas_fast.ops.divergence import distillation_kl, ensemble_kl, entropy, symmetric_kl
from udas_fast.ops.mixing import region_mix, sample_boxes
from udas_fast.ops.predictions import PseudoLabel, confusion_matrix, pseudo_label
from udas_fast.ops.supervised import cross_entropy, rectified_cross_entropy
from udas_fast.ops.upsampling import upsample

__all__ = [
    "PseudoLabel",
    "backends",
    "confusion_matrix",
    "cross_entropy",
    "distillation_kl",
    "ensemble_kl",
    "entropy",
    "pseudo_label",
    "rectified_cross_entropy",
    "region_mix",
    "sample_boxes",
    "symmetric_kl",
    "upsample",
]
