"""A method in one file: the network's own sure predictions are labels of target images (Lee, "Pseudo-Label", 2013).

python examples/own_method.py
udas-fast plan sure_labels --method-file examples/own_method.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import udas_fast as uf
from udas_fast import ops
from udas_fast.config import config_dataclass
from udas_fast.data.domains import Domains
from udas_fast.data.streets import Streets
from udas_fast.objectives import Batches, Losses, Objective, ObjectiveConfig, Requirements, StepContext
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.recipes import Recipe, Stage, small

SIZE = (64, 128)


@config_dataclass
class SureLabelsConfig(ObjectiveConfig, kind="sure_labels"):
    """L = CE on source images + weight · CE on target pixels whose confidence reaches the threshold."""

    weight: float = 0.5
    threshold: float = 0.9

    @property
    def requirements(self) -> Requirements:
        """Labelled source and unlabelled target images."""
        return Requirements(streams=("source", "unlabelled"))

    def build(self, num_classes: int) -> SureLabels:
        """Return the objective."""
        return SureLabels(self)


class SureLabels(Objective):
    """A source forward and a target forward, each followed by its backward."""

    def __init__(self, config: SureLabelsConfig) -> None:
        super().__init__()
        self.config = config

    def training_step(self, model: nn.Module, batch: Batches, ctx: StepContext) -> Losses:
        """Learn from the source's labels, then from the target's sure predictions."""
        output = ctx.forward(model, batch.source.image, domain="source")
        seg = segmentation_loss(output, batch.source.required_label, auxiliary_weight=0.1)
        ctx.backward(seg)

        image = batch.unlabelled.image
        output = ctx.forward(model, image, domain="target")
        with torch.no_grad():
            size = (image.shape[-2], image.shape[-1])
            sure = ops.pseudo_label([output.primary], size, threshold=self.config.threshold).label
        own = segmentation_loss(output, sure, auxiliary_weight=0.1)
        ctx.backward(self.config.weight * own)
        return {"seg": seg.detach(), "own": own.detach()}


SURE_LABELS = Recipe(
    name="sure_labels",
    summary="the network's own sure predictions as labels of target images",
    stages=(Stage("adaptation", SureLabelsConfig(), steps=150_000),),
)


def main(steps: int = 300, run_dir: str | Path = "runs/own-method") -> float:
    """Train it on small streets and return its mIoU on real ones."""
    data = Domains(
        source=Streets("sim", "train", SIZE),
        unlabelled=Streets("real", "train", SIZE),
        val=Streets("real", "val", SIZE, count=50),
    )
    scores = uf.Trainer(small(SURE_LABELS, size=SIZE, steps=steps), data, run_dir=run_dir).fit()
    return scores["adaptation"].miou


if __name__ == "__main__":
    print(f"mIoU {100 * main():.1f}")
