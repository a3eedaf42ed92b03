"""Online self-training against float64 computations of its formulas, and the traps of published code."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.data.strong_view import StrongConfig, apply_strong, draw_strong
from udas_fast.data.style import match_lab
from udas_fast.errors import InputError
from udas_fast.models import NetworkInput, Normalization
from udas_fast.objectives import Batches
from udas_fast.objectives.online_self_training import (
    OnlineSelfTraining,
    OnlineSelfTrainingConfig,
    choose_partner,
    pixel_weights,
)
from udas_fast.objectives.student_view import ClassMixConfig, CutMixConfig, MaskConfig, sample_classes
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_resumes,
    assert_rolls_back,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    take_step,
    tiny,
)

CLASSES, SIZE = 4, (32, 48)
PLAIN = StrongConfig(jitter_probability=0.0, blur_probability=0.0)


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def _config(**options: Any) -> OnlineSelfTrainingConfig:
    return OnlineSelfTrainingConfig(**{"strong": PLAIN, "threshold": 0.3, **options})


def _started(config: OnlineSelfTrainingConfig, model: nn.Module) -> tuple[OnlineSelfTraining, nn.Module]:
    """The objective with a teacher that is not the student, and the teacher in float64."""
    objective = config.build(CLASSES)
    objective.on_round_start(model)
    with torch.no_grad():
        objective.teacher.network.primary.weight.mul_(4)
    return objective, copy.deepcopy(objective.teacher.network).double()


def _losses(output: tuple[Tensor, Tensor], label: Tensor, weight: Tensor | None, auxiliary: float) -> Tensor:
    """The mean over pixels that have a label of weighted cross-entropies, of both heads."""
    found = []
    for logits in output:
        each = F.cross_entropy(_up(logits), label.long(), ignore_index=255, reduction="none")
        found.append(((each if weight is None else each * weight)[label != 255]).mean())
    return found[0] + auxiliary * found[1] if auxiliary else found[0]


def _teach(teacher: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and label at full resolution, from upsampled logits, with the statistics of the average."""
    with torch.no_grad():
        confidence, label = _up(teacher(image.double() / 255)[0]).softmax(1).max(1)
    return confidence, label.to(torch.uint8)


def _weights(confidence: Tensor, threshold: float, share: str) -> Tensor:
    sure = (confidence >= threshold).double()
    if share == "image":
        return torch.stack([torch.full_like(x, float(x.mean())) for x in sure])
    return sure if share == "pixel" else torch.full_like(sure, float(sure.mean()))


@pytest.mark.parametrize("share", ["image", "batch", "pixel"])
def test_dacs_is_its_formula(share: str, batches: Batches, tiny_net: TinyNetwork) -> None:
    config = _config(share=share, class_mix=ClassMixConfig(), weight=0.7, threshold=0.4)
    objective, teacher = _started(config, tiny_net)
    reference = copy.deepcopy(tiny_net).double()
    source, target = batches.source, batches.unlabelled.image
    prepared = objective.prepare_batch(batches, make_context(seed=5))
    passes = backward_passes(objective, tiny_net, batches, make_context(seed=5))

    confidence, label = _teach(teacher, target)
    weight = _weights(confidence, 0.4, share)
    assert 0.02 < weight.mean() < 0.98
    chosen = [
        row.nonzero().flatten().tolist() for row in sample_classes(source.label, prepared.student[0].chance)
    ]
    inside = torch.stack([torch.isin(y, torch.tensor(c)) for y, c in zip(source.label, chosen, strict=True)])
    assert 0.2 < inside.float().mean() < 0.8
    image = torch.where(inside[:, None], source.image, target)
    seg = _losses(reference(source.image.double() / 255), source.label, None, 0.1)
    strong = 0.7 * _losses(
        reference(image.double() / 255),
        torch.where(inside, source.label, label),
        torch.where(inside, 1.0, weight),
        0.1,
    )
    expected = [gradients(loss, {"model": reference}) for loss in (seg, strong)]
    assert_same_gradients(passes, expected)
    assert not any(name.startswith("objective") for passed in passes for name in passed)


def test_fixmatch_is_its_formula(batches: Batches, tiny_net: TinyNetwork) -> None:
    config = _config(
        domain="labelled", share="pixel", cut_mix=CutMixConfig(probability=1.0), auxiliary_weight=0.0
    )
    objective, teacher = _started(config, tiny_net)
    reference = copy.deepcopy(tiny_net).double()
    target = batches.unlabelled.image
    (view,) = objective.prepare_batch(batches, make_context(seed=5)).student
    passes = backward_passes(objective, tiny_net, batches, make_context(seed=5))

    confidence, label = _teach(teacher, target)
    weight = _weights(confidence, 0.3, "pixel")
    image, label, weight = (torch.stack([*x]) for x in (target, label, weight))
    mixed = image.clone(), label.clone(), weight.clone()
    for i, (x0, y0, x1, y1) in enumerate(view.boxes.tolist()):
        assert x1 > x0
        for whole, other in zip(mixed, (image, label, weight), strict=True):
            whole[i, ..., y0:y1, x0:x1] = other[1 - i, ..., y0:y1, x0:x1]
    seg = _losses(reference(batches.labelled.image.double() / 255), batches.labelled.label, None, 0.0)
    strong = _losses(reference(mixed[0].double() / 255), mixed[1], mixed[2], 0.0)
    assert_same_gradients(passes, [gradients(loss, {"model": reference}) for loss in (seg, strong)])


def test_mic_hides_patches_and_labels_all_pixels(batches: Batches, tiny_net: TinyNetwork) -> None:
    config = _config(masked=MaskConfig(patch=0.25, weight=0.5), share="image", auxiliary_weight=0.0)
    objective, teacher = _started(config, tiny_net)
    reference = copy.deepcopy(tiny_net).double()
    target = batches.unlabelled.image.clamp(min=1)
    batches.unlabelled.image.copy_(target)
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)[:, None, None]
    form = NetworkInput(Normalization((0.4, 0.5, 0.6), (1, 1, 1)))
    context = replace(make_context(seed=2), input=form)
    passes = backward_passes(objective, tiny_net, batches, context)

    _, patches = objective.prepare_batch(batches, make_context(seed=2)).masked
    visible = patches.repeat_interleave(8, 2).repeat_interleave(8, 3)  # a quarter of 32 rows
    assert visible.shape == (2, 1, *SIZE)
    seen = tiny_net.inputs[-1]
    assert not seen[~visible.expand_as(seen)].any()  # the mean colour
    with torch.no_grad():
        confidence, label = _up(teacher(target.double() / 255 - mean)[0]).softmax(1).max(1)
    weight = _weights(confidence, 0.3, "image")
    masked = 0.5 * _losses(
        reference((target.double() / 255 - mean) * visible), label.to(torch.uint8), weight, 0.0
    )
    assert_same_gradients(passes[2:], [gradients(masked, {"model": reference})])


def test_masked_images_leave_the_running_statistics_alone(batches: Batches, tiny_net: TinyNetwork) -> None:
    nets = [copy.deepcopy(tiny_net) for _ in range(2)]
    for net, masked in zip(nets, (None, MaskConfig()), strict=True):
        objective, _ = _started(_config(masked=masked), net)
        take_step(objective, net, batches, make_context())
    assert torch.equal(nets[0].norm.running_mean, nets[1].norm.running_mean)
    assert torch.equal(nets[0].norm.running_var, nets[1].norm.running_var)
    assert nets[1].norm.momentum == tiny_net.norm.momentum
    assert not torch.equal(nets[0].norm.running_mean, tiny_net.norm.running_mean)


def test_the_teacher_keeps_its_own_statistics_until_it_follows(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    objective, _ = _started(_config(class_mix=ClassMixConfig()), tiny_net.train())
    before = copy.deepcopy(objective.teacher.state_dict())
    take_step(objective, tiny_net, batches, make_context())
    assert all(torch.equal(v, before[k]) for k, v in objective.teacher.state_dict().items())
    objective.after_step(tiny_net)  # the first step's is a copy
    assert torch.equal(objective.teacher.network.norm.running_mean, tiny_net.norm.running_mean)


def test_the_student_sees_changed_images_and_the_teacher_does_not(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    config = _config(
        strong=StrongConfig(), masked=MaskConfig(), augment_labelled=StrongConfig(), domain="both"
    )
    objective, _ = _started(config, tiny_net)
    seen: list[Tensor] = []
    objective.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    take_step(objective, tiny_net, batches, make_context(seed=4))
    target = batches.unlabelled.image
    context = make_context(seed=4)
    assert torch.equal(seen[0], context.normalize(target))
    source, labelled, student = (
        context.normalize(apply_strong(image, draw_strong(2, config.strong, context.generator)))
        for image in (batches.source.image, batches.labelled.image, target)
    )
    for found, expected in zip(tiny_net.inputs, (source, labelled, student), strict=False):
        assert torch.equal(found, expected)
    assert not torch.equal(student, seen[0])
    assert len(tiny_net.inputs) == 4
    hidden = tiny_net.inputs[3] == 0
    assert not torch.equal(tiny_net.inputs[3][~hidden], student[~hidden])  # changes of its own


def test_the_surest_of_several_views_labels(batches: Batches, tiny_net: TinyNetwork) -> None:
    objective, teacher = _started(
        _config(views=("identity", "strong", "strong"), share="pixel", auxiliary_weight=0.0), tiny_net
    )
    assert objective.config.requirements.views == ("strong", "strong")
    views = torch.randint(
        0, 256, (2, 2, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    target = replace(batches.unlabelled, views=views)
    made = Batches(source=batches.source, unlabelled=target)
    reference = copy.deepcopy(tiny_net).double()
    losses = take_step(objective, tiny_net, made, make_context())
    taught = [_teach(teacher, image) for image in (target.image, *views.unbind(1))]
    confidence, best = torch.stack([c for c, _ in taught]).max(0)
    label = torch.stack([y for _, y in taught]).gather(0, best[None])[0]
    expected = _losses(reference(target.image.double() / 255), label, _weights(confidence, 0.3, "pixel"), 0.0)
    torch.testing.assert_close(losses["strong"].double(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_confidence_is_compared_in_float32() -> None:
    # In bfloat16 0.968 is 0.96875: 0.9685 would be sure, or not, by rounding alone.
    confidence = torch.tensor([[[0.9679, 0.9681], [0.9685, 0.9687]]])
    assert pixel_weights(confidence, 0.968, "pixel").tolist() == [[[0, 1], [1, 1]]]
    with torch.autocast("cpu", torch.bfloat16):
        weight = pixel_weights(confidence, 0.968, "image")
    assert weight.dtype == torch.float32
    assert (weight == 0.75).all()


def test_shares_are_of_an_image_the_batch_or_a_pixel() -> None:
    confidence = torch.tensor([[[0.9, 0.9]], [[0.9, 0.1]]])
    assert pixel_weights(confidence, 0.5, "image").tolist() == [[[1, 1]], [[0.5, 0.5]]]
    assert pixel_weights(confidence, 0.5, "batch").tolist() == [[[0.75, 0.75]], [[0.75, 0.75]]]
    assert pixel_weights(confidence, 0.5, "pixel").tolist() == [[[1, 1]], [[1, 0]]]


def test_balanced_thresholds_keep_the_surer_part_of_each_class(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    config = _config(threshold="balanced", portion=0.3, cap=0.8, share="pixel", decay=0.9)
    objective, teacher = _started(config, tiny_net)
    confidence, label = _teach(teacher, batches.unlabelled.image)
    seen = torch.zeros(CLASSES, 64, dtype=torch.float64)
    for step in range(2):  # the teacher's average goes on between them only by after_step
        (made,) = [objective.prepare_batch(batches, make_context(seed=5))]
        losses = objective.training_step(tiny_net, made, make_context(seed=5))
        counted = [
            torch.histc((confidence[label == c] * 64).floor().clamp(max=63), 64, 0, 64)
            for c in range(CLASSES)
        ]
        seen = 0.9 * seen + torch.stack(counted)
        thresholds = torch.full((CLASSES,), 0.8, dtype=torch.float64)
        for c in range(CLASSES):
            reached = [k / 64 for k in range(64) if seen[c, k:].sum() >= 0.3 * seen[c].sum()]
            if seen[c].sum() > 0:
                thresholds[c] = min(max(reached), 0.8)
        sure = (confidence >= thresholds[label.long()]).double()
        assert 0.3 <= sure.mean() < 0.6
        assert len(set(thresholds.tolist())) > 1  # classes differ
        assert losses["sure"].item() == pytest.approx(sure.mean().item(), abs=1e-3), step


def test_labelled_target_images_are_a_term_and_partners_where_there_are_some(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    unlabelled = Batches(source=batches.source, unlabelled=batches.unlabelled)
    for partner in ("source", "labelled", "both"):
        config = _config(domain="both", class_mix=ClassMixConfig(partner=partner))
        assert config.requirements.optional_streams == ("labelled",)
        objective, _ = _started(config, tiny_net)
        assert "seg_labelled" in take_step(objective, tiny_net, batches, make_context())
        losses = take_step(objective, tiny_net, unlabelled, make_context())
        assert list(losses) == ["sure", "seg", "strong"]
        made = objective.prepare_batch(unlabelled, make_context()).partner
        assert (made is None) == (partner == "labelled")
    chosen = torch.tensor([True, False])
    both = choose_partner(batches, "both", chosen)
    assert torch.equal(both.image[0], batches.labelled.image[0])
    assert torch.equal(both.label[1], batches.source.label[1])
    assert choose_partner(batches, "labelled", chosen) is batches.labelled


def test_the_source_takes_the_targets_style_before_anything_else(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    config = _config(translate="lab", domain="both", class_mix=ClassMixConfig(partner="source"))
    assert {"source", "unlabelled"} <= set(config.requirements.paired)
    objective, _ = _started(config, tiny_net)
    made = objective.prepare_batch(batches, make_context())
    expected = match_lab(batches.source.image, batches.unlabelled.image)
    assert not torch.equal(expected, batches.source.image)
    assert made.partner is not None
    assert torch.equal(made.partner.image, expected)
    assert torch.equal(made.labelled["seg"].image, expected)
    assert torch.equal(made.labelled["seg_labelled"].image, batches.labelled.image)
    assert torch.equal(made.target, batches.unlabelled.image)


def test_a_rounds_result_may_be_the_teacher(tiny_net: TinyNetwork) -> None:
    before = copy.deepcopy(tiny_net.state_dict())
    for result in ("student", "teacher"):
        objective, _ = _started(_config(result=result), tiny_net)
        same = torch.equal(objective.result(tiny_net).primary.weight, before["primary.weight"])
        assert same == (result == "student")


def test_wrong_combinations_are_refused(batches: Batches, tiny_net: TinyNetwork) -> None:
    with pytest.raises(InputError, match="class_mix.partner: found labelled, expected source"):
        _config(class_mix=ClassMixConfig(partner="labelled"))
    with pytest.raises(InputError, match="class_mix.partner: found both, expected labelled"):
        _config(domain="labelled", class_mix=ClassMixConfig(partner="both"))
    with pytest.raises(
        InputError, match='translate: found lab, expected "none", or domain "source" or "both"'
    ):
        _config(domain="labelled", translate="lab")
    objective, _ = _started(_config(cut_mix=CutMixConfig()), tiny_net)
    one = Batches(
        source=batches.source,
        unlabelled=Batch(batches.unlabelled.image[:1], None, batches.unlabelled.ids[:1]),
    )
    with pytest.raises(InputError, match="batch size of unlabelled images: found 1, expected 2 or more"):
        objective.prepare_batch(one, make_context())


def test_labelled_target_images_have_the_targets_size() -> None:
    recipe = get_recipe("online_self_training")
    geometries = recipe.geometries(recipe.stages[1])
    assert geometries["labelled"] == geometries["unlabelled"] == recipe.input.target


# What `small` does without, on a narrow vision transformer.
TOKENS = ["model.backbone=dinov2_s", "model.width=12", "stages.mixed.objective.masked.patch=token"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(
            (name, [])
            for name in ("dacs", "mic", "vfm_uda", "fixmatch", "unimatch_v2", "online_self_training")
        ),
        ("daformer", ["stages.mixed.objective.feature_distance={weight: 1}"]),
        ("vfm_uda", TOKENS),
        ("online_self_training", ["stages.*.objective.threshold=balanced"]),
    ],
)
def test_recipes_resume_and_skip_steps_with_labels_that_count(name: str, settings: list[str]) -> None:
    # On random images no teacher is as sure as the recipe asks.
    recipe = override(tiny(get_recipe(name)), ["stages.*.objective.threshold=0.21", *settings])
    assert_resumes(recipe)
    assert_rolls_back(recipe)
