"""Noisy Student for segmentation, on FixMatch's network, sizes and optimiser, so that methods can be compared."""

from dataclasses import replace

from udas_fast.objectives.cutout import CutOutConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes.fixmatch import FIXMATCH
from udas_fast.recipes.recipe import Recipe, Stage

OPTIMIZER = FIXMATCH.stages[0].optimizer

# As ST and Naive-Student have it for segmentation: hard labels of all pixels, from an image and its mirror image.
NOISY_STUDENT: Recipe = replace(
    FIXMATCH,
    name="noisy_student",
    title="Noisy Student",
    summary="a teacher of labelled target images labels the others once a round for a new student under noise",
    stages=(
        Stage(
            "teacher",
            SupervisedConfig(domain="labelled", augment=True, auxiliary_weight=0.0),
            steps=20_000,
            optimizer=OPTIMIZER,
        ),
        Stage(
            "student",
            SelfTrainingConfig(
                source=False,
                pseudo_labels=PseudoLabelConfig(
                    views=("identity",), flip_view=True, reduce="mean", threshold=0.0, labels="disk"
                ),
                cut_out=CutOutConfig(),
                consistency=None,
                label_consistency_weight=0.0,
                auxiliary_weight=0.0,
            ),
            steps=20_000,
            rounds=3,
            optimizer=OPTIMIZER,
        ),
    ),
    model=replace(FIXMATCH.model, dropout=0.1),  # of networks that learn; the teacher labels without
    paper="Self-training with Noisy Student improves ImageNet classification, CVPR 2020, arXiv 1911.04252; for "
    "segmentation Naive-Student, ECCV 2020, arXiv 2005.10266, and ST, CVPR 2022, arXiv 2106.05095",
    published="Naive-Student: 85.1 on the test split of Cityscapes, with video frames",
)
