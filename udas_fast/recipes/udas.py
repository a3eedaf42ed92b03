"""UDAS: domain adaptation, then self-training; its adaptation alone, and its variants. Comments give the sections."""

from dataclasses import replace

from udas_fast.engine.optim import OptimizerConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives.adaptation import AdaptationConfig, AgreementConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.recipes.cyclegan import CYCLEGAN
from udas_fast.recipes.recipe import Recipe, Stage

PAPER = "Self-training with combined unsupervised domain adaptation and semi-supervised learning (UDAS)"

_ADAPTATION = AdaptationConfig(  # 3.3 and 3.4
    mixing=MixingConfig(),
    adversary=AdversaryConfig(),
    agreement=AgreementConfig(),
)

UDAS = Recipe(
    name="udas",
    title="UDAS",
    summary="CycleGAN, multi-level adversary, head agreement, Domain CutMix, then consistent K-view self-training",
    paper=PAPER,
    published="GTA5 → Cityscapes 43.9 without labels, 63.5 with all",
    translation=CYCLEGAN,  # 3.2
    stages=(
        Stage("adaptation", _ADAPTATION, steps=150_000),  # AdaptSegNet's early stop
        Stage(
            "self_training",  # 3.5
            SelfTrainingConfig(mixing=MixingConfig()),
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
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(adversary=AdversaryConfig(), agreement=AgreementConfig()),
            steps=250_000,
        ),
    ),
)

# The model that UDAS 3.3 leaves blank is probably MRNet, which stands at this place in its list of references: numbers
# of that code's command line (seg_uncertainty.py).
_MRNET = replace(
    _ADAPTATION,
    auxiliary_weight=0.5,
    agreement=AgreementConfig(kl="mean", weight=0.1, start=15 / 25),
)
UDAS_MRNET = replace(
    UDAS,
    name="udas_mrnet",
    title="UDAS with MRNet",
    summary="UDAS with the adaptation of MRNet, which the paper seems to cite for it: its numbers and its agreement",
    stages=(
        Stage("adaptation", _MRNET, steps=25_000, optimizer=OptimizerConfig(lr=2e-4, horizon=4, warmup=0.2)),
        UDAS.stages[1],
    ),
    model=ModelConfig(dropout=0.1),
    input=replace(UDAS.input, batch_size=2),
)

# Tuned on this project's tasks of a few hundred small images, against the paper's text where that was worse there.
_JOINED = MixingConfig(paste="source", replace=False, augment="photometric", augmented_source=True)
UDAS_TUNED = replace(
    UDAS,
    name="udas_tuned",
    title="UDAS, tuned",
    summary="UDAS as it does better on small tasks: LAB statistics, source boxes in target images beside an augmented "
    "source, thresholds by class, statistics by domain, students that go on",
    translation=None,
    stages=(
        replace(
            UDAS.stages[0],
            objective=replace(
                _ADAPTATION,
                translate="lab",
                mixing=_JOINED,
                agreement=AgreementConfig(kl="mean", weight=0.1, start=0.1),
            ),
        ),
        replace(
            UDAS.stages[1],
            objective=SelfTrainingConfig(
                translate="lab",
                mixing=_JOINED,
                pseudo_labels=PseudoLabelConfig(threshold="balanced"),
                student="teacher",
                consistency=None,
                label_consistency_weight=0.0,
            ),
        ),
    ),
    model=ModelConfig(norm="domain"),
    published="",
)
