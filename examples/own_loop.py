"""A plain training loop with the operators alone: a teacher's pseudo-labels, CutMix and one fused loss.

python examples/own_loop.py
"""

from __future__ import annotations

import copy

import torch

from udas_fast import ops
from udas_fast.data.streets import Streets
from udas_fast.models import MEAN, STD, ModelConfig, build_model, normalize

SIZE, BATCH = (64, 128), 2


def main(steps: int = 200) -> float:
    """Train for ``steps`` and return the last loss."""
    torch.manual_seed(0)
    student = build_model(ModelConfig(backbone="resnet18", width=16), num_classes=19)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4)
    sim, real = Streets("sim", "train", SIZE), Streets("real", "train", SIZE)

    loss = torch.zeros(())
    for step in range(steps):
        source, source_label = batch(sim, step)
        target, _ = batch(real, step)

        # The teacher labels the target in two views; the operator undoes the mirroring of the second.
        views = [teacher(normalize(view)).primary for view in (target, target.flip(-1))]
        pseudo = ops.pseudo_label(views, SIZE, threshold=0.6, flips=[False, True])

        # A box of the source is pasted into the target; the image is normalised in the same pass.
        boxes, _ = ops.sample_boxes(BATCH, SIZE)
        image, label = ops.region_mix(source, target, source_label, pseudo.label, boxes, mean=MEAN, std=STD)

        loss = ops.cross_entropy(student(image).primary, label)
        loss = loss + ops.cross_entropy(student(normalize(source)).primary, source_label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # the teacher is the student's moving average
            for mean, weight in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(weight, 0.01)
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}, kept {(pseudo.label != 255).float().mean():.0%}")
    return loss.item()


def batch(streets: Streets, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 [N, 3, H, W] and labels uint8 [N, H, W] of the step."""
    samples = [streets[(step * BATCH + i) % len(streets)] for i in range(BATCH)]
    images = torch.stack([torch.from_numpy(sample.image).permute(2, 0, 1) for sample in samples])
    return images, torch.stack([torch.from_numpy(sample.label) for sample in samples])


if __name__ == "__main__":
    main()
