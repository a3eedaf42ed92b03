"""The fused operators. Interim: every operator is the plain-PyTorch reference."""

from udas_fast.ops.reference import (
    PseudoLabel,
    confusion_matrix,
    cross_entropy,
    distillation_kl,
    ensemble_kl,
    entropy,
    pseudo_label,
    rectified_cross_entropy,
    region_mix,
    sample_boxes,
    symmetric_kl,
)

__all__ = [
    "PseudoLabel",
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
]
