"""Baselines of adaptation: the source alone, the labelled target alone, and both together."""

from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes.recipe import Recipe, Stage

NO_ADAPTATION = Recipe(
    name="no_adaptation",
    title="No adaptation",
    summary="cross-entropy on the labelled source only; the target is never seen in training",
    paper="baseline of UDAS",
    published="GTA5 → Cityscapes 28.5",
    stages=(Stage("source", SupervisedConfig(domain="source"), steps=250_000),),
)

SUPERVISED = Recipe(
    name="supervised",
    title="Supervised",
    summary="cross-entropy on the labelled target images only",
    paper="baseline of UDAS",
    published="Cityscapes 41.6 with 100 labels, 69.1 with all",
    stages=(Stage("target", SupervisedConfig(domain="labelled"), steps=250_000),),
)

JOINT = Recipe(
    name="joint",
    title="Joint",
    summary="cross-entropy on the labelled source and the labelled target images together, no adaptation",
    paper="baseline of every method that uses labelled target images",
    stages=(Stage("joint", SupervisedConfig(domain="both"), steps=250_000),),
)
