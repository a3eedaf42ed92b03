"""VFM-UDA's parts: hidden tokens of a vision transformer and labels by the mean of an image and its mirror."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.data.strong_view import StrongConfig
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model, set_micro_batch_size
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig
from udas_fast.objectives.student_view import MaskConfig, draw_visible
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_no_host_sync,
    assert_processes_agree,
    assert_same_gradients,
    assert_seeded,
    backward_passes,
    gradients,
    make_context,
    random_batches,
    tiny,
)

SIZE = (32, 50)  # nearest to 2 x 4 patches of 14 pixels
PLAIN = StrongConfig(jitter_probability=0.0, blur_probability=0.0)
CONFIG = OnlineSelfTrainingConfig(
    strong=PLAIN,
    threshold=0.44,
    share="image",
    flip_view=True,
    reduce="mean",
    masked=MaskConfig(ratio=0.5, patch="token", weight=0.5),
    auxiliary_weight=0.0,
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = build_model(ModelConfig(backbone="dinov2_s", head="upscaling", width=12), 4).train()
    nn.init.normal_(made.backbone.mask_token)
    with torch.no_grad():
        made.primary.classifier.weight.mul_(10)
    return made


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def test_the_masked_term_is_its_formula(model: nn.Module) -> None:
    reference = copy.deepcopy(model).double()
    batches = random_batches(4, SIZE)
    objective = CONFIG.build(4)
    objective.on_round_start(model)
    _, visible = objective.prepare_batch(batches, make_context(seed=2)).masked
    passes = backward_passes(objective, model, batches, make_context(seed=2))

    assert visible.shape == (2, 1, 2, 4)
    assert 0 < visible.sum() < visible.numel()
    x = batches.unlabelled.image.double() / 255
    with torch.no_grad():
        straight, mirrored = (_up(reference(view).primary).softmax(1) for view in (x, x.flip(-1)))
        confidence, label = ((straight + mirrored.flip(-1)) / 2).max(1)
    weight = (confidence >= 0.44).double().mean((1, 2), keepdim=True)
    assert 0.02 < weight.mean() < 0.98
    backbone = reference.backbone
    patches = backbone.patch_embed["proj"](F.interpolate(x, (28, 56), mode="bilinear", align_corners=False))
    embedded = patches.clone()
    for n, _, i, j in (~visible).nonzero().tolist():
        embedded[n, :, i, j] = backbone.mask_token[0]
    handle = backbone.patch_embed["proj"].register_forward_hook(lambda *_: embedded)
    primary, _ = reference.decode(backbone(x))
    handle.remove()
    loss = 0.5 * (F.cross_entropy(_up(primary), label, reduction="none") * weight).mean()
    assert_same_gradients(passes[2:], [gradients(loss, {"model": reference})])
    assert not any("mask_token" in name for name in passes[2])  # it is not trained


@pytest.mark.parametrize("name", ["dinov2_s", "dinov2_s_reg", "dinov3_s"])
def test_what_is_below_a_hidden_patch_is_not_seen(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_model(ModelConfig(backbone=name, width=24), 4).backbone.eval()
    side = backbone.patch
    x = torch.randn(1, 3, 2 * side, 3 * side)
    hidden = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    hidden[..., 1, 2] = True
    other = x.clone()
    other[..., side:, 2 * side :] = 0
    for a, b, whole in zip(backbone(x, hidden), backbone(other, hidden), backbone(x), strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, whole)
    for a, b in zip(backbone(x, ~hidden & hidden), backbone(x), strict=True):
        assert torch.equal(a, b)


def test_there_are_as_many_patches_as_tokens_and_each_is_hidden_by_its_own_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    backbone = build_model(ModelConfig(backbone="dinov3_s", width=24), 4).backbone
    for size in ((64, 96), (70, 90), (5, 40), (71, 73)):
        visible = draw_visible(2, size, MaskConfig(patch="token"), generator, backbone.patch)
        assert visible.shape[-2:] == backbone(torch.zeros(1, 3, *size))[0].shape[-2:]
    many = draw_visible(50, (1120, 1120), MaskConfig(patch="token"), generator, 14)
    assert many.shape == (50, 1, 80, 80)
    assert many.float().mean() == pytest.approx(0.3, abs=0.005)
    assert len(set(many.sum((1, 2, 3)).tolist())) > 10


def test_micro_batches_have_their_own_images_patches(model: nn.Module) -> None:
    x = torch.randn(3, 3, 28, 42)
    hidden = torch.rand(3, 1, 2, 3) < 0.5
    whole = model.encode(x, hidden)
    set_micro_batch_size(model, 2)
    for a, b in zip(model.encode(x, hidden), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_a_run_whose_network_has_no_tokens_is_refused_before_it_begins(
    camvid_root: Path, tmp_path: Path
) -> None:
    recipe = tiny(get_recipe("vfm_uda"))
    assert recipe.stages[0].objective.masked == MaskConfig()  # a ResNet has none
    recipe = override(recipe, ["stages.mixed.objective.masked.patch=token"])
    train = open_dataset(f"camvid:{camvid_root}", "train")
    domains = Domains(source=train, unlabelled=train)
    for model, found in (
        (None, "backbone for .*: found ResNet"),
        (TinyNetwork(11), "network for .*: found TinyNetwork"),
    ):
        with pytest.raises(InputError, match=found.replace(".*", "masked.patch token of stage mixed")):
            Trainer(recipe, domains, model, run_dir=tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="views: found 17 with the mirrored one, expected at most 16"):
        OnlineSelfTrainingConfig(views=("identity",) * 16, flip_view=True)


def test_the_recipe_has_the_authors_numbers() -> None:
    recipe = get_recipe("vfm_uda")
    (stage,) = recipe.stages
    method, optimizer, rare = stage.objective, stage.optimizer, recipe.input.rare_classes
    assert (method.decay, method.threshold, method.share) == (0.999, 0.968, "batch")
    assert (method.masked.ratio, method.masked.patch, method.masked.weight) == (0.7, "token", 1.0)
    assert method.feature_distance is None
    rate = 5e-5 * math.sqrt(recipe.input.batch_size)
    assert optimizer.lr * optimizer.head_lr_mult == pytest.approx(rate)
    assert optimizer.lr * optimizer.backbone_lr_mult == pytest.approx(0.1 * rate)
    assert optimizer.warmup * stage.steps == pytest.approx(1500)
    assert recipe.input.target.crop == recipe.input.source.crop == (80 * 14, 80 * 14)
    # Twice 3000 pixels where the short side is 1024.
    assert rare.min_crop_ratio * 3000 * (1024 * 1863) / (720 * 1280) == pytest.approx(6000, rel=0.01)
    assert rare.temperature == 0.05


@pytest.mark.slow
def test_the_recipe_keeps_the_rules_for_steps() -> None:
    recipe = override(
        tiny(get_recipe("vfm_uda")),
        ["model.backbone=dinov2_s", "model.width=12", "stages.mixed.objective.masked.patch=token"],
    )
    assert_seeded(recipe)
    assert_no_host_sync(recipe)
    assert_processes_agree(recipe)
