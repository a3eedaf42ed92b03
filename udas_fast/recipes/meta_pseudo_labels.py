"""Meta pseudo labels for segmentation, on FixMatch's network, sizes and optimiser, so that methods can be compared."""

from dataclasses import replace

from udas_fast.objectives.meta_pseudo_labels import MetaPseudoLabelsConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes.fixmatch import FIXMATCH
from udas_fast.recipes.recipe import Recipe, Stage

OPTIMIZER = FIXMATCH.stages[0].optimizer
LABELLED = SupervisedConfig(domain="labelled", auxiliary_weight=0.0)

# Without the label smoothing of the teacher's loss on labelled images (0.15 in the paper).
META_PSEUDO_LABELS: Recipe = replace(
    FIXMATCH,
    name="meta_pseudo_labels",
    title="Meta Pseudo Labels",
    summary="a teacher labels for its student and learns from what this does to it; at last the student sees labels",
    stages=(
        Stage("teacher", LABELLED, steps=8_000, optimizer=OPTIMIZER),  # the student waits a tenth
        Stage("meta", MetaPseudoLabelsConfig(), steps=68_000, optimizer=OPTIMIZER),
        Stage("finetune", LABELLED, steps=4_000, optimizer=replace(OPTIMIZER, lr=OPTIMIZER.lr / 10)),  # 5 %
    ),
    paper="Meta Pseudo Labels, CVPR 2021, arXiv 2003.10580",
    published="none for segmentation",
)
