"""Fused operators: upsampling, softmax, loss and gradient in one pass, on low-resolution logits.

Each operator has a plain-PyTorch twin of the same name in :mod:`udas_fast.ops.reference`, which runs where the
operator is not compiled for a device; :func:`backends` reports which of the two runs.
"""

import torch

from udas_fast.ops._confusion_matrix import confusion_matrix
from udas_fast.ops._cross_entropy import cross_entropy
from udas_fast.ops._entropy import entropy
from udas_fast.ops._kl import distillation_kl, ensemble_kl, symmetric_kl
from udas_fast.ops._library import REASON, backends, build_info, check_gpus
from udas_fast.ops._pseudo_label import PseudoLabel, pseudo_label
from udas_fast.ops._rectified_cross_entropy import rectified_cross_entropy
from udas_fast.ops._region_mix import region_mix
from udas_fast.ops._sample_boxes import sample_boxes
from udas_fast.ops._soft_labels import soft_cross_entropy, squared_error
from udas_fast.ops._upsample import upsample

__all__ = [
    "PseudoLabel",
    "backends",
    "build_info",
    "confusion_matrix",
    "cross_entropy",
    "distillation_kl",
    "ensemble_kl",
    "entropy",
    "pseudo_label",
    "rectified_cross_entropy",
    "region_mix",
    "sample_boxes",
    "soft_cross_entropy",
    "squared_error",
    "symmetric_kl",
    "upsample",
]

if not REASON:  # at once would start CUDA, which processes that fork later could not use any more
    torch.cuda._lazy_call(check_gpus)
