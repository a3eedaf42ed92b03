"""FixMatch for segmentation and UniMatch V2, as the latter's code has them: labels and images of one domain."""

from dataclasses import replace

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.data.strong_view import StrongConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives.channel_dropout import ChannelDropoutConfig
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig
from udas_fast.objectives.student_view import CutMixConfig
from udas_fast.recipes.recipe import Recipe, Stage

CONSISTENCY = OnlineSelfTrainingConfig(
    domain="labelled",
    decay=0.996,
    threshold=0.95,
    share="pixel",
    strong=StrongConfig(
        jitter=(0.5, 0.5, 0.5, 0.25), grey_probability=0.2, blur=(0.1, 2.0), blur_probability=0.5
    ),
    cut_mix=CutMixConfig(),
    auxiliary_weight=0.0,
)

# Network, sizes and optimiser are UniMatch's for Cityscapes, whose rate 0.005 is for 8 images of each kind.
FIXMATCH = Recipe(
    name="fixmatch",
    title="FixMatch",
    summary="labelled target images, and strong CutMix views of unlabelled ones with an averaged teacher's labels",
    model=ModelConfig(head="deeplabv3plus", output_stride=16),
    stages=(
        Stage(
            "consistency",
            CONSISTENCY,
            steps=80_000,  # the budget is ours
            optimizer=OptimizerConfig(lr=0.005 / 4, weight_decay=1e-4, head_lr_mult=1.0, horizon=1.0),
        ),
    ),
    input=InputConfig(
        target=Geometry(size=(1024, 2048), scale=(0.5, 2.0), crop=(801, 801), flip=True), batch_size=2
    ),
    paper="FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence, NeurIPS 2020, arXiv "
    "2001.07685; UniMatch V2, arXiv 2410.10777",
)

# Plain cross-entropy of labelled images, where the authors' configuration has that of the hardest pixels (OHEM). Sides
# of 798 pixels are 57 patches; the rates 5e-6 and, of the head, 2e-4 are for 8 images of each kind.
UNIMATCH_V2 = Recipe(
    name="unimatch_v2",
    title="UniMatch V2",
    summary="FixMatch on a DINOv2 backbone, with two strong views that keep complementary halves of its channels",
    model=ModelConfig(backbone="dinov2_b", head="dpt"),
    stages=(
        Stage(
            "consistency",
            replace(CONSISTENCY, channel_dropout=ChannelDropoutConfig(), result="teacher"),
            steps=80_000,  # the budget is ours
            optimizer=OptimizerConfig(
                name="adamw", lr=5e-6 / 4, weight_decay=0.01, head_lr_mult=40.0, horizon=1.0
            ),
        ),
    ),
    input=InputConfig(
        target=Geometry(size=(1024, 2048), scale=(0.5, 2.0), crop=(798, 798), flip=True), batch_size=2
    ),
    paper="UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation, TPAMI 2025, arXiv 2410.10777",
    published="Cityscapes 83.6 with 186 labels (best of all evaluations)",
)
