"""VAT for segmentation, on FixMatch's network, sizes and optimiser, so that methods can be compared."""

from dataclasses import replace

from udas_fast.objectives.vat import VatConfig
from udas_fast.recipes.fixmatch import FIXMATCH
from udas_fast.recipes.recipe import Recipe, Stage

VAT: Recipe = replace(
    FIXMATCH,
    name="vat",
    title="VAT",
    summary="labelled target images, and unlabelled ones under the perturbation that changes their labels most",
    stages=(Stage("consistency", VatConfig(), steps=80_000, optimizer=FIXMATCH.stages[0].optimizer),),
    paper="Virtual Adversarial Training, TPAMI 2018, arXiv 1704.03976; its radius: French et al., BMVC 2020, arXiv "
    "1906.01916",
    published="none for segmentation",
)
