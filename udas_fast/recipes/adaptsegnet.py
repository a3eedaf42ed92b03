"""AdaptSegNet (Tsai et al., CVPR 2018): adversarial learning in output space, multi-level and single-level."""

from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.recipes.recipe import Recipe, Stage

PAPER = "Learning to Adapt Structured Output Space for Semantic Segmentation, CVPR 2018, arXiv 1802.10349"

# Their code decays over 250,000 steps and stops at 150,000: OptimizerConfig's defaults, as all weights here.
ADAPTSEGNET = Recipe(
    name="adaptsegnet",
    title="AdaptSegNet",
    summary="discriminators on the softmax of both heads separate source from target, and the network confuses them",
    stages=(Stage("adaptation", AdaptationConfig(adversary=AdversaryConfig()), steps=150_000),),
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
            AdaptationConfig(auxiliary_weight=0, adversary=AdversaryConfig(weights=(0.001, 0))),
            steps=150_000,
        ),
    ),
    paper=PAPER,
    published="GTA5 → Cityscapes 41.4",
)
