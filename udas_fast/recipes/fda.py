"""FDA (Yang and Soatto, CVPR 2020): low frequencies of the target in the source, and sure predictions."""

from udas_fast.engine.optim import OptimizerConfig
from udas_fast.objectives.adaptation import AdaptationConfig, EntropyConfig
from udas_fast.recipes.recipe import Recipe, Stage

FDA = Recipe(
    name="fda",
    title="FDA",
    summary="source images with the target's low-frequency amplitudes, and a robust entropy loss on the target",
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(
                auxiliary_weight=0,  # one head, as in the paper
                translate="fda",
                fda_beta=0.01,
                entropy=EntropyConfig(weights=(0.005, 0), robust=2.0),
            ),
            steps=100_000,
            optimizer=OptimizerConfig(horizon=150 / 100),  # decay over 150,000 steps, stopped at 100,000
        ),
    ),
    paper="FDA: Fourier Domain Adaptation for Semantic Segmentation, CVPR 2020, arXiv 2004.05498",
    published="GTA5 → Cityscapes 50.45, the mean of three networks of different β after self-training",
)
