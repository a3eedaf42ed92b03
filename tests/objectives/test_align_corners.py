"""One setting, ``ModelConfig.align_corners``: every loss and label takes its logits up with aligned corners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast import Trainer
from udas_fast.data import Batch, open_dataset
from udas_fast.data.domains import Domains
from udas_fast.inference import TrainedModel
from udas_fast.models import MeanNetwork, ModelConfig, SegmentationOutput, build_model, to_output
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.adversary import AdversaryConfig, OutputAdversary
from udas_fast.objectives.cyclegan import CycleGAN, CycleGANConfig
from udas_fast.objectives.ddm import DistillationConfig, DomainMixingConfig
from udas_fast.objectives.losses import agreement_loss, entropy_loss, rectified_loss, segmentation_loss
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.rectification import MRNET_LABELS, RectificationConfig
from udas_fast.objectives.self_training import ConsistencyConfig, SelfTrainingConfig
from udas_fast.recipes import get_recipe, override, small
from udas_fast.testing import take_step

SIZE = (32, 48)
CORNERS = pytest.mark.parametrize("corners", [False, True])


def _pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    primary, auxiliary = (3 * torch.randn(2, 4, 5, 7, generator=generator) for _ in range(2))
    return primary, auxiliary


def _up(logits: Tensor, corners: bool, size: tuple[int, int] = SIZE) -> Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=corners)


def _label() -> Tensor:
    return torch.randint(0, 4, (2, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def _close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)  # float32 against float64


@CORNERS
def test_losses_are_those_of_the_upsampled_logits(corners: bool) -> None:
    primary, auxiliary = _pair()
    output, label = SegmentationOutput(primary, auxiliary, corners), _label()
    p, a = (_up(logits, corners) for logits in (primary, auxiliary))
    log_p, log_a = p.log_softmax(1), a.log_softmax(1)
    ce_p, ce_a = (F.cross_entropy(x, label.long(), reduction="none") for x in (p, a))
    _close(segmentation_loss(output, label, 0.3), ce_p.mean() + 0.3 * ce_a.mean())

    ap = (log_a.exp() * (log_a - log_p)).sum(1)
    pa = (log_p.exp() * (log_p - log_a)).sum(1)
    _close(agreement_loss(output, SIZE, "symmetric"), (ap + pa).mean())
    m = (p + 0.5 * a).softmax(1)
    _close(agreement_loss(output, SIZE, "mean"), (m * (2 * m.log() - log_p - log_a)).sum(1).mean())

    entropies = [-(x.exp() * x).sum(1) / torch.tensor(4.0).double().log() for x in (log_p, log_a)]
    _close(entropy_loss(output, SIZE, (0.6, 0.2)), 0.6 * entropies[0].mean() + 0.2 * entropies[1].mean())
    robust = (entropies[0].square() + 1e-6).square().mean()
    _close(entropy_loss(output, SIZE, (1.0, 0.0), robust=2.0), robust)

    want = (ce_p * (-ap).exp() + ap).mean() + 0.5 * (ce_a * (-pa).exp() + pa).mean()
    _close(rectified_loss(output, label, 0.5), want)


@CORNERS
def test_discriminators_see_the_upsampled_softmax(corners: bool) -> None:
    torch.manual_seed(0)
    config = AdversaryConfig(width=4, weights=(0.3, 0.2), gan="lsgan", real="ensemble")
    adversary = OutputAdversary((4, 4), config)
    source, target = _pair(1), _pair(2)
    images = Batch(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), None, ["0", "1"])
    outputs = (SegmentationOutput(*source, corners), SegmentationOutput(*target, corners))
    fooled = adversary.generator_loss(outputs[1], images)
    told = adversary.discriminator_loss(outputs[0], images, outputs[1], images)
    levels = [d.double() for d in (adversary.primary, adversary.auxiliary)]
    answers = [d(_up(t, corners).softmax(1)) for d, t in zip(levels, target, strict=True)]
    _close(fooled, 0.3 * (answers[0] ** 2).mean() + 0.2 * (answers[1] ** 2).mean())
    mixed = _up(source[0] + 0.5 * source[1], corners).softmax(1)
    want = sum(
        0.5 * (d(mixed) ** 2).mean() + 0.5 * ((t - 1) ** 2).mean()
        for d, t in zip(levels, answers, strict=True)
    )
    _close(told, want)


@CORNERS
def test_both_heads_combine_by_their_corners(corners: bool) -> None:
    primary, auxiliary = _pair()
    coarse = auxiliary[..., :3, :4]
    want = primary.double() + 0.5 * _up(coarse, corners, (5, 7))
    _close(SegmentationOutput(primary, coarse, corners).ensemble(), want)


@pytest.fixture
def aligned(batches: Batches) -> torch.nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", width=4, align_corners=True)
    return build_model(config, 4).eval()


def _pseudo(model: torch.nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return _up(to_output(model(image)).primary, True, image.shape[-2:]).softmax(1)


def test_teachers_label_with_aligned_corners(
    aligned: torch.nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    step, target = make_step(), batches.unlabelled
    image = step.normalize(target.image)
    want = _pseudo(aligned, image)

    student = SelfTrainingConfig().build(4)
    student.on_round_start(aligned)
    found = student.labeller.label(*student.labeller.views([target.image], step.normalize), SIZE, 0.0)
    _close(found.confidence, want.max(1).values)

    mixing = DomainMixingConfig(labeller="student", pseudo_share=1).build(4)
    mixing.networks = {"student": aligned}
    mixing.on_round_start(aligned)
    mixing.prepare_batch(batches, step)
    counts = mixing.labeller.histogram.sum((1, 2))
    assert torch.equal(counts, want.argmax(1).flatten().bincount(minlength=4))

    labels = replace(MRNET_LABELS, scales=())
    rectification = RectificationConfig(pseudo_labels=labels).build(4)
    rectification.on_round_start(aligned)
    with torch.no_grad():
        plain, mirrored = (aligned(view).ensemble() for view in (image, image.flip(-1)))
    mean = _up(plain, True).softmax(1) + _up(mirrored, True).softmax(1).flip(-1)
    labelling = rectification.labelling
    found = labelling.label(*labelling.views([target.image], step.normalize), SIZE, labelling.thresholds())
    assert torch.equal(found.label.long(), mean.argmax(1))


def test_students_of_teachers_learn_with_aligned_corners(
    aligned: torch.nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    step = make_step()
    image = step.normalize(batches.unlabelled.image)
    torch.manual_seed(1)
    teachers = [build_model(ModelConfig(backbone="resnet18", width=4, align_corners=True), 4) for _ in "ab"]
    distillation = DistillationConfig().build(4)
    distillation.networks = dict(zip(("region", "sample"), teachers, strict=True))
    losses = take_step(distillation, aligned, batches, step)
    mean = sum(_pseudo(teacher, image) for teacher in teachers) / 2
    log_student = _pseudo(aligned, image).log()
    _close(losses["distilled"], (mean * (mean.log() - log_student)).sum(1).mean())
    assert MeanNetwork(teachers)(image).align_corners

    # At one view, unaugmented, student and teacher agree but for the student's augmentation: none here.
    consistency = SelfTrainingConfig(
        pseudo_labels=PseudoLabelConfig(views=("identity",)),
        consistency=ConsistencyConfig(weight=1.0),
        augment=False,
    ).build(4)
    consistency.on_round_start(teachers[0])
    losses = take_step(consistency, aligned, batches, make_step())
    mean = _pseudo(teachers[0], image)
    _close(losses["consistency"], (mean * (mean.log() - log_student)).sum(1).mean())


def test_translation_leaves_alone_what_an_aligned_network_sees(aligned: torch.nn.Module) -> None:
    objective = CycleGAN(CycleGANConfig(), aligned)
    generator = torch.Generator().manual_seed(3)
    original = torch.randint(0, 256, (1, 3, *SIZE), generator=generator).byte()
    translated = torch.rand(1, 3, *SIZE, generator=generator)
    loss = objective._semantic(aligned, original, 2 * translated - 1)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    log_p = _pseudo(aligned, (translated - mean) / std).log()
    label = _pseudo(aligned, (original / 255 - mean) / std).argmax(1)
    _close(loss, F.nll_loss(log_p, label))


def test_a_run_trains_scores_and_saves_with_aligned_corners(camvid_root: Path, tmp_path: Path) -> None:
    train, val = (open_dataset(f"camvid:{camvid_root}", split) for split in ("train", "val"))
    recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=1, batch_size=1)
    recipe = override(recipe, ["model.width=4", "model.align_corners=true"])
    trainer = Trainer(recipe, Domains(source=train, val=val), run_dir=tmp_path / "run", device="cpu")
    (scores,) = trainer.fit().values()
    assert scores.protocol.align_corners
    assert TrainedModel.load(tmp_path / "run", torch.device("cpu")).model.align_corners
