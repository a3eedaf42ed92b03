"""DDM (Chen et al., CVPR 2021): two domain-mixed teachers and a student, four rounds."""

from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.objectives.ddm import DistillationConfig, DomainMixingConfig
from udas_fast.recipes.recipe import Recipe, Stage

ROUNDS = 4  # GTA5; 3 for SYNTHIA, 1 with the labels of all target images, as `study ddm` has them
STEPS = 40_000  # of each network in each round; the budget is ours
OPTIMIZER = OptimizerConfig(weight_decay=1e-4, horizon=1.0)


def _round(number: int) -> tuple[Stage, ...]:
    """Both teachers, then their student; from the second round on the last student's labels join in."""
    labeller = "student" if number > 1 else None
    teachers = (
        Stage(
            f"{level}_{number}",
            DomainMixingConfig(level=level, labeller=labeller),
            steps=STEPS,
            optimizer=OPTIMIZER,
            network=level,
        )
        for level in ("region", "sample")
    )
    student = Stage(
        f"student_{number}", DistillationConfig(), steps=STEPS, optimizer=OPTIMIZER, network="student"
    )
    return (*teachers, student)


DDM = Recipe(
    name="ddm",
    title="DDM",
    summary="teachers on regions and on samples of both labelled domains teach a student, in rounds",
    stages=tuple(stage for number in range(1, ROUNDS + 1) for stage in _round(number)),
    # Regions are exchanged between images of one size.
    input=InputConfig(source=Geometry(size=(720, 1280), crop=(512, 1024)), target=Geometry(size=(512, 1024))),
    paper="Semi-supervised Domain Adaptation based on Dual-level Domain Mixing for Semantic Segmentation, "
    "CVPR 2021, arXiv 2103.04705",
    published="GTA5 → Cityscapes 61.2 with 100 labels, 60.5 with 200, 64.3 with 500, 66.6 with 1000, 69.8 with all",
)
