"""UDA of Xie et al. for segmentation, on FixMatch's network, sizes and optimiser, so that methods can be compared."""

from dataclasses import replace

from udas_fast.objectives.uda_xie import UdaXieConfig
from udas_fast.recipes.fixmatch import FIXMATCH
from udas_fast.recipes.recipe import Recipe, Stage

UDA_XIE: Recipe = replace(
    FIXMATCH,
    name="uda_xie",
    title="UDA (Xie et al.)",
    summary="labelled target images, and unlabelled ones whose sharpened labels hold under AutoAugment and CutOut",
    stages=(Stage("consistency", UdaXieConfig(), steps=80_000, optimizer=FIXMATCH.stages[0].optimizer),),
    paper="Unsupervised Data Augmentation for Consistency Training, NeurIPS 2020, arXiv 1904.12848",
    published="none for segmentation",
)
