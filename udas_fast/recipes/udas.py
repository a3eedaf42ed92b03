"""UDAS: domain adaptation, then self-training; and its adaptation alone. Comments give the paper's sections."""

from udas_fast.models import ModelConfig
from udas_fast.objectives.adaptation import AdaptationConfig, AgreementConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.recipes.recipe import Recipe, Stage

UDAS = Recipe(
    name="udas",
    title="UDAS",
    summary="LAB translation, multi-level adversary, head agreement, Domain CutMix, then K-view self-training",
    paper="Self-training with combined unsupervised domain adaptation and semi-supervised learning (UDAS)",
    published="GTA5 → Cityscapes 44.4 without labels, 63.5 with all",
    model=ModelConfig(norm="domain"),
    stages=(
        Stage(
            "adaptation",  # UDAS 3.2-3.4
            AdaptationConfig(
                translate="lab",
                mixing=MixingConfig(),
                adversary=AdversaryConfig(),
                agreement=AgreementConfig(),
            ),
            steps=150_000,  # AdaptSegNet's early stop
        ),
        Stage(
            "self_training",  # UDAS 3.5
            SelfTrainingConfig(translate="lab", mixing=MixingConfig()),
            steps=50_000,  # the budget is ours
            rounds=2,
        ),
    ),
)

# The row UDA of 4.3.1: adversary and agreement alone, on as many steps as the whole method takes.
UDA = Recipe(
    name="uda",
    title="UDA",
    summary="multi-level adversary and head agreement: no translation, no mixing, no self-training",
    paper="the row UDA of UDAS",
    published="GTA5 → Cityscapes 30.8, 44.4 on translated images",
    model=ModelConfig(norm="domain"),
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(adversary=AdversaryConfig(), agreement=AgreementConfig()),
            steps=250_000,
        ),
    ),
)
