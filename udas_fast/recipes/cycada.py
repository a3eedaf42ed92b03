"""CyCADA (Hoffman et al., ICML 2018): a translated source, then an adversary on the scores of single pixels.

Its pixel level is `udas-fast translate --semantic RUN`; this trains on the images it wrote, `--source translated:RUN`.
"""

from udas_fast.engine.optim import OptimizerConfig
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes.recipe import Recipe, Stage

CYCADA = Recipe(
    name="cycada",
    title="CyCADA",
    summary="a source that CycleGAN translated (`translated:RUN`), then a gated adversary on the scores of pixels",
    stages=(
        # As many steps as the weights that they begin with.
        Stage("source", SupervisedConfig(auxiliary_weight=0), steps=115_000),
        Stage(
            "adaptation",
            AdaptationConfig(
                auxiliary_weight=0,  # one head, as in the paper
                adversary=AdversaryConfig(
                    weights=(0.1, 0),  # λ_g
                    space="score",
                    discriminator="pixel",
                    width=512,
                    stride=8,  # the scores as they are; upsampled ones say the same of each pixel
                    gate=0.6,  # their code stops L_seg as well
                ),
            ),
            steps=100_000,
            # Constant; their discriminator learns so too, here by Adam as all others.
            optimizer=OptimizerConfig(lr=1e-5, momentum=0.99, head_lr_mult=1, power=0),
        ),
    ),
    paper="CyCADA: Cycle-Consistent Adversarial Domain Adaptation, ICML 2018, arXiv 1711.03213",
    published="GTA5 → Cityscapes 39.5, with DRN-26",
)
