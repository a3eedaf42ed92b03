"""CycleGAN for image translation (`udas-fast translate`); comments give the sections of Zhu et al. 2017."""

from dataclasses import replace

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.errors import bad
from udas_fast.objectives.cyclegan import CycleGANConfig
from udas_fast.recipes.recipe import Recipe, Stage

SMALL_STEPS = 600  # minutes on two CPU cores

CYCLEGAN = Recipe(
    name="cyclegan",
    title="CycleGAN",
    summary="CycleGAN from random crops; `udas-fast translate` applies it to the whole source",
    paper="Unpaired image-to-image translation using cycle-consistent adversarial networks (ICCV 2017)",
    stages=(
        Stage(
            "translation",
            CycleGANConfig(),
            steps=500_000,  # CyCADA: 20 epochs of GTA5's 24,966 images
            optimizer=OptimizerConfig(
                name="adam",  # section 4, with the rates' decay: constant for one half, linear to zero
                lr=2e-4,
                betas=(0.5, 0.999),
                weight_decay=0.0,
                schedule="linear",
                discriminator_lr=2e-4,
                discriminator_betas=(0.5, 0.999),
            ),
        ),
    ),
    # Crops as in CyCADA's code; sizes are those of GTA5 and Cityscapes, `translate` puts in those of its images.
    input=InputConfig(
        source=Geometry(size=(1052, 1914), crop=(400, 400), flip=True),
        target=Geometry(size=(1024, 2048), crop=(400, 400), flip=True),
        batch_size=1,  # section 4
    ),
)


def small_cyclegan(recipe: Recipe, *, crop: tuple[int, int], steps: int = SMALL_STEPS) -> Recipe:
    """``recipe`` for CPUs: a quarter of the width, four residual blocks, ``crop`` (H, W) and ``steps``.

    Raises:
        InputError: it is another one than CycleGAN's.
    """
    stage = recipe.stages[0]
    if len(recipe.stages) > 1 or not isinstance(stage.objective, CycleGANConfig):
        raise bad(f"recipe {recipe.name}", "another one", "one stage of kind cyclegan")
    objective = replace(stage.objective, width=16, blocks=4, discriminator_width=16)
    return replace(
        recipe,
        stages=(replace(stage, objective=objective, steps=steps),),
        input=replace(
            recipe.input,
            source=replace(recipe.input.source, crop=crop),
            target=replace(recipe.input.target, crop=crop),
        ),
    )
