"""Online self-training from a source network, with as many labelled target images as there are."""

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig, RareClassConfig
from udas_fast.data.strong_view import StrongConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig
from udas_fast.objectives.student_view import ClassMixConfig, CutMixConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes.recipe import Recipe, Stage

OPTIMIZER = OptimizerConfig(
    name="adamw", lr=6e-5, weight_decay=0.01, decay_norms=False, power=1.0, horizon=1.0, warmup=0.05
)

ONLINE_SELF_TRAINING = Recipe(
    name="online_self_training",
    title="Online self-training",
    summary="a source network learns on from all labels there are and from strong, mixed target views, which its own "
    "average labels",
    model=ModelConfig(norm="domain"),
    stages=(
        Stage(
            "source",  # a short run needs a teacher that knows something
            SupervisedConfig(domain="source", augment=True),
            steps=20_000,
            optimizer=OPTIMIZER,
        ),
        Stage(
            "online",
            OnlineSelfTrainingConfig(
                domain="both",
                augment_labelled=StrongConfig(),
                threshold="balanced",  # one for all would leave rare classes without labels
                share="pixel",
                cut_mix=CutMixConfig(),
                # Classes of the source cost as much as they give where the domains differ in their scenes.
                class_mix=ClassMixConfig(partner="labelled"),
                result="teacher",
            ),
            steps=20_000,
            optimizer=OPTIMIZER,
        ),
    ),
    input=InputConfig(
        source=Geometry(size=(720, 1280), crop=(512, 512), flip=True),
        target=Geometry(size=(512, 1024), crop=(512, 512), flip=True),
        batch_size=2,
        rare_classes=RareClassConfig(labelled=True),
    ),
)
