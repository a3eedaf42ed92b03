"""Seg-Uncertainty (Zheng and Yang 2020): memory regularisation (MRNet), then rectified pseudo-labels."""

from dataclasses import replace

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives.adaptation import AdaptationConfig, AgreementConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.rectification import MRNET_LABELS, RectificationConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.recipes.recipe import Recipe, Stage

# Numbers of the authors' command lines: decay over 100,000 steps, the published networks are those of step
# 25,000, 5,000 steps of warm-up. Not taken over: class weights, squeeze-and-excitation and group norm in the head,
# and the second stage's dropout of 0.2, which is `--stages rectification --from RUN --set model.dropout=0.2`.
OPTIMIZER = OptimizerConfig(lr=2e-4, horizon=100 / 25, warmup=5 / 25)

SEG_UNCERTAINTY = Recipe(
    name="seg_uncertainty",
    title="Seg-Uncertainty",
    summary="multi-scale least-squares adversary and agreement of the heads, then pseudo-labels weighted by it",
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(
                auxiliary_weight=0.5,
                adversary=AdversaryConfig(
                    weights=(0.002, 0.0004),  # 0.001, 0.0002 of a loss that their code doubles
                    real="ensemble",
                    gan="lsgan",
                    scales=3,
                    width=32,
                ),
                agreement=AgreementConfig(kl="mean", weight=0.1, start=15 / 25),
            ),
            steps=25_000,
            optimizer=OPTIMIZER,
        ),
        Stage("rectification", RectificationConfig(), steps=25_000, optimizer=replace(OPTIMIZER, lr=1e-4)),
    ),
    model=ModelConfig(dropout=0.1),
    input=InputConfig(
        source=Geometry(size=(720, 1280), scale=(0.8, 1.2), crop=(512, 1024), flip=True), batch_size=2
    ),
    paper="Rectifying Pseudo Label Learning via Uncertainty Estimation, IJCV 2021, arXiv 2003.03773; "
    "Unsupervised Scene Adaptation with Memory Regularization in vivo, IJCAI 2020, arXiv 1912.11164",
    published="GTA5 → Cityscapes 45.5 after the first stage, 50.3 after the second",
)

# The stage that their ablation compares with: the same labels, all of which count alike.
MRNET = replace(
    SEG_UNCERTAINTY,
    name="mrnet",
    title="MRNet with pseudo-labels",
    summary="Seg-Uncertainty whose pseudo-labels are not rectified",
    stages=(
        SEG_UNCERTAINTY.stages[0],
        Stage(
            "pseudo_labels",
            SelfTrainingConfig(
                source=False,
                pseudo_labels=MRNET_LABELS,
                auxiliary_weight=0.5,
                student="teacher",
                augment=False,
                consistency=None,
                label_consistency_weight=0.0,
            ),
            steps=25_000,
            optimizer=SEG_UNCERTAINTY.stages[1].optimizer,
        ),
    ),
    published="GTA5 → Cityscapes 45.5 after the first stage, 48.3 after the second",
)
