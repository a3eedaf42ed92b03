"""DACS, and DAFormer's and MIC's self-training on top of it. Comments give the authors' files where they differ."""

from dataclasses import replace

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig, RareClassConfig
from udas_fast.data.strong_view import StrongConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives.feature_distance import FeatureDistanceConfig
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig
from udas_fast.objectives.student_view import ClassMixConfig, MaskConfig
from udas_fast.recipes.recipe import Recipe, Stage

DACS = Recipe(
    name="dacs",
    title="DACS",
    summary="half of the source's classes pasted into target images, which an averaged teacher labels",
    stages=(
        Stage(
            "mixed",
            OnlineSelfTrainingConfig(
                decay=0.99,
                share="batch",
                strong=StrongConfig(jitter=(0.25, 0.25, 0.25, 0.25)),
                class_mix=ClassMixConfig(),
                auxiliary_weight=0.0,
            ),
            steps=250_000,
            optimizer=OptimizerConfig(horizon=1.0),
        ),
    ),
    input=InputConfig(
        source=Geometry(size=(720, 1280), crop=(512, 512)),
        target=Geometry(size=(512, 1024), crop=(512, 512)),
        batch_size=2,
    ),
    paper="DACS: Domain Adaptation via Cross-domain Mixed Sampling, WACV 2021, arXiv 2007.08702",
    published="GTA5 → Cityscapes 52.1, SYNTHIA → Cityscapes 48.3 (16 classes), from COCO's weights",
)

# Without the pseudo-labels' margins (top 15 and bottom 120 rows of Cityscapes), which are right for one camera and
# crops of the full height.
DAFORMER = Recipe(
    name="daformer",
    title="DAFormer",
    summary="DACS's self-training of DAFormer's transformer near its first features, on images drawn by rare classes",
    model=ModelConfig(backbone="mit_b5", head="daformer", dropout=0.1, drop_path=0.1),
    stages=(
        Stage(
            "mixed",
            OnlineSelfTrainingConfig(
                share="batch",
                class_mix=ClassMixConfig(),
                feature_distance=FeatureDistanceConfig(),
                auxiliary_weight=0.0,
            ),
            steps=40_000,
            optimizer=OptimizerConfig(
                name="adamw",
                lr=6e-5,
                weight_decay=0.01,
                decay_norms=False,
                power=1.0,
                horizon=1.0,
                warmup=1500 / 40_000,
            ),
        ),
    ),
    input=InputConfig(
        source=Geometry(size=(720, 1280), crop=(512, 512), flip=True),
        target=Geometry(size=(512, 1024), crop=(512, 512), flip=True),
        batch_size=2,
        rare_classes=RareClassConfig(),
    ),
    paper="DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic "
    "Segmentation, CVPR 2022, arXiv 2111.14887",
    published="GTA5 → Cityscapes 68.3, SYNTHIA → Cityscapes 60.9 (16 classes)",
)

MIC = replace(
    DAFORMER,
    name="mic",
    title="MIC",
    summary="DAFormer's self-training, and the same labels for target images of which 70 % is hidden",
    stages=(
        replace(
            DAFORMER.stages[0],
            objective=OnlineSelfTrainingConfig(
                share="batch",
                class_mix=ClassMixConfig(),
                masked=MaskConfig(),
                feature_distance=FeatureDistanceConfig(),
                auxiliary_weight=0.0,
            ),
        ),
    ),
    paper="MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation, CVPR 2023, arXiv 2212.01322",
    published="GTA5 → Cityscapes 75.9 on HRDA's network (2.1 over HRDA)",
)
