"""MixMatch for segmentation, on FixMatch's network, sizes and optimiser, so that methods can be compared."""

from dataclasses import replace

from udas_fast.objectives.mixmatch import MixMatchConfig
from udas_fast.recipes.fixmatch import FIXMATCH
from udas_fast.recipes.recipe import Recipe, Stage

MIXMATCH: Recipe = replace(
    FIXMATCH,
    name="mixmatch",
    title="MixMatch",
    summary="labelled and unlabelled target images, mixed with one another as their labels are, which views share",
    stages=(Stage("mixed", MixMatchConfig(), steps=80_000, optimizer=FIXMATCH.stages[0].optimizer),),
    ema=0.999,  # the network that is scored
    paper="MixMatch: A Holistic Approach to Semi-Supervised Learning, NeurIPS 2019, arXiv 1905.02249",
    published="none for segmentation",
)
