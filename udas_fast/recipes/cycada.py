"""CyCADA (Hoffman et al., ICML 2018): a translated source, then an adversary on the scores of single pixels.

Its pixel level is `udas-fast translate --semantic RUN`; this trains on what that wrote, `--source translated:RUN`.
"""

from udas_fast.engine.optim import OptimizerConfig
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.mixing import NO_MIXING
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
                auxiliary_weight=0,  # one head, as theirs
                adversarial_weights=(0.1, 0),  # λ_g
                space="score",
                discriminator="pixel",
                discriminator_width=512,
                discriminator_stride=8,  # the scores as they are; upsampled ones say the same of each pixel
                gate=0.6,  # their code stops L_seg as well
                kl_weight=0,
                mixing=NO_MIXING,
            ),
            steps=100_000,
            # Constant; their discriminator learns so too, here by Adam as all others.
            optimizer=OptimizerConfig(lr=1e-5, momentum=0.99, head_lr_mult=1, power=0),
        ),
    ),
    paper="CyCADA: Cycle-Consistent Adversarial Domain Adaptation, ICML 2018, arXiv 1711.03213",
    published="GTA5 → Cityscapes 39.5, with DRN-26",
)
