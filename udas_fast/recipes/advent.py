"""ADVENT (Vu et al., CVPR 2019): entropy minimisation, directly (MinEnt) and by an adversary (AdvEnt)."""

from udas_fast.engine.optim import OptimizerConfig
from udas_fast.objectives.adaptation import AdaptationConfig, EntropyConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.recipes.recipe import Recipe, Stage

PAPER = "ADVENT: Adversarial Entropy Minimization for Domain Adaptation, CVPR 2019, arXiv 1811.12833"
OPTIMIZER = OptimizerConfig(horizon=250 / 120)  # decay over 250,000 steps, stopped at 120,000

ADVENT = Recipe(
    name="advent",
    title="AdvEnt",
    summary="AdaptSegNet whose discriminators see the weighted self-information of the predictions",
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(adversary=AdversaryConfig(space="entropy")),
            steps=120_000,
            optimizer=OPTIMIZER,
        ),
    ),
    paper=PAPER,
    published="GTA5 → Cityscapes 43.8; 45.5 averaged with a MinEnt network",
)

MINENT = Recipe(
    name="minent",
    title="MinEnt",
    summary="the entropy of the target's predictions as a loss; no discriminators",
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(entropy=EntropyConfig(weights=(0.001, 0.0002))),
            steps=120_000,
            optimizer=OPTIMIZER,
        ),
    ),
    paper=PAPER,
    published="GTA5 → Cityscapes 42.3",
)
