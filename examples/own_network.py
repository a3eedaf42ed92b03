"""A network of your own in a recipe of the package, and in the model's file afterwards.

python examples/own_network.py
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import udas_fast as uf
from udas_fast.data.domains import Domains
from udas_fast.data.streets import Streets
from udas_fast.recipes import small

SIZE = (64, 128)


class Tiny(nn.Module):
    """Four convolutions at stride 4; a dict with "out", as torchvision's networks return, is one of the forms taken."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 2, dilation=2),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return logits [N, C, H/4, W/4] of normalised images [N, 3, H, W]."""
        return {"out": self.head(self.body(image))}


def main(steps: int = 300, run_dir: str | Path = "runs/own-network") -> float:
    """Train it with one discriminator, load it again, and return the mean confidence of a prediction."""
    data = Domains(
        source=Streets("sim", "train", SIZE),
        unlabelled=Streets("real", "train", SIZE),
        val=Streets("real", "val", SIZE, count=50),
    )
    recipe = small(uf.get_recipe("adaptsegnet_single"), size=SIZE, steps=steps)
    uf.Trainer(recipe, data, Tiny, run_dir=run_dir).fit()

    model = uf.load(run_dir, model=Tiny)  # a file never imports code by itself: the function is given again
    _, confidence = model.predict(Streets("real", "val", SIZE)[0].image)
    return float(confidence.mean())


if __name__ == "__main__":
    print(f"mean confidence {main():.2f}")
