"""AdaptSegNet (Tsai et al., CVPR 2018): adversarial learning in output space, multi-level and single-level."""

from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.mixing import NO_MIXING
from udas_fast.recipes.recipe import Recipe, Stage

PAPER = "Learning to Adapt Structured Output Space for Semantic Segmentation, CVPR 2018, arXiv 1802.10349"

# Their code decays over 250,000 steps and stops at 150,000: OptimizerConfig's defaults, as all weights here.
ADAPTSEGNET = Recipe(
    name="adaptsegnet",
    title="AdaptSegNet",
    summary="discriminators on the softmax of both heads tell source from target, and the network fools them",
    stages=(Stage("adaptation", AdaptationConfig(kl_weight=0, mixing=NO_MIXING), steps=150_000),),
    paper=PAPER,
    published="GTA5 → Cityscapes 42.4",
)

ADAPTSEGNET_SINGLE = Recipe(
    name="adaptsegnet_single",
    title="AdaptSegNet (one level)",
    summary="AdaptSegNet with the primary head and one discriminator only",
    stages=(
        Stage(
            "adaptation",
            AdaptationConfig(
                auxiliary_weight=0, adversarial_weights=(0.001, 0), kl_weight=0, mixing=NO_MIXING
            ),
            steps=150_000,
        ),
    ),
    paper=PAPER,
    published="GTA5 → Cityscapes 41.4",
)
