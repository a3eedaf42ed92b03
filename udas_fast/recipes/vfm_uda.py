"""VFM-UDA: DACS's self-training of a vision foundation model. Comments give the authors' code where it differs."""

import math

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig, RareClassConfig
from udas_fast.data.strong_view import StrongConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig
from udas_fast.objectives.student_view import ClassMixConfig, MaskConfig
from udas_fast.recipes.recipe import Recipe, Stage

BATCH = 2  # of each domain; 8 in the paper

# The authors crop 1024 × 1024 pixels of images whose short side is 1024, and resize the crop to 80 × 80 patches of 14
# pixels: here the images are resized at once. Without the pseudo-labels' margins, as in `daformer`, and without colour
# changes of target images before the mixing.
VFM_UDA = Recipe(
    name="vfm_uda",
    title="VFM-UDA",
    summary="DACS's self-training of a DINOv2 network, with target images of which 70 % of the tokens is hidden",
    model=ModelConfig(backbone="dinov2_b", head="upscaling"),
    stages=(
        Stage(
            "mixed",
            OnlineSelfTrainingConfig(
                augment_labelled=StrongConfig(
                    jitter=(32 / 255, 0.5, 0.5, 18 / 360), jitter_probability=0.9, blur_probability=0.0
                ),
                flip_view=True,
                reduce="mean",
                share="batch",
                class_mix=ClassMixConfig(),
                masked=MaskConfig(patch="token"),
                auxiliary_weight=0.0,
            ),
            steps=40_000,
            optimizer=OptimizerConfig(
                name="adamw",
                lr=5e-6 * math.sqrt(BATCH),  # the authors' rule
                weight_decay=0.01,
                power=1.0,
                horizon=1.0,
                warmup=1500 / 40_000,
            ),
        ),
    ),
    input=InputConfig(
        source=Geometry(size=(1120, 2038), scale=(0.9, 1.1), crop=(1120, 1120), flip=True),
        target=Geometry(size=(1120, 2240), scale=(0.9, 1.1), crop=(1120, 1120), flip=True),
        batch_size=BATCH,
        # 6000 pixels in a crop of images of 1024 × 1863.
        rare_classes=RareClassConfig(temperature=0.05, min_crop_ratio=0.97),
    ),
    paper="Exploring the Benefits of Vision Foundation Models for Unsupervised Domain Adaptation, CVPRW 2024, arXiv "
    "2406.09896",
    published="GTA5 → Cityscapes 77.1 (DINOv2-B), 78.4 (DINOv2-L), with batches of 8",
)
