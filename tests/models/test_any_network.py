"""Networks of any backbone and head by configuration: sizes, training, normalisation, files and exports."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from udas_fast.data import CAMVID, Batch
from udas_fast.errors import InputError
from udas_fast.evaluation import predict
from udas_fast.evaluation.metrics import Protocol
from udas_fast.evaluation.scoring import evaluate
from udas_fast.inference import TrainedModel, export_model
from udas_fast.models import (
    IMAGENET,
    MeanNetwork,
    ModelConfig,
    Normalization,
    build_model,
    normalization_of,
    normalize,
    set_checkpointing,
)

CLASSES = len(CAMVID)
BACKBONES = {"resnet18": 4, "efficientnet_lite0": 8, "mit_b0": 8, "dinov2_s": 12, "dinov3_s": 24}
HEADS = ("deeplabv2", "deeplabv3plus", "fcn", "fpn", "segformer", "daformer", "linear", "upscaling", "dpt")


def small(backbone: str, **options) -> ModelConfig:
    return ModelConfig(backbone=backbone, width=BACKBONES[backbone], **options)


PAIRS = [
    *(("mit_b0", head) for head in HEADS),
    *((backbone, head) for backbone in ("dinov2_s", "dinov3_s") for head in ("deeplabv2", "fpn", "dpt")),
    *((backbone, head) for backbone in ("resnet18", "efficientnet_lite0") for head in ("fpn", "daformer")),
    *(("dinov2_s", head) for head in ("linear", "upscaling")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head"), PAIRS)
def test_every_head_trains_on_every_backbone(backbone: str, head: str) -> None:
    torch.manual_seed(0)
    model = build_model(small(backbone, head=head, dropout=0.1), CLASSES).train()
    output = model(torch.randn(1, 3, 64, 80))  # one image
    assert output.primary.shape[:2] == output.auxiliary.shape[:2] == (1, CLASSES)
    output.primary.square().sum().backward(retain_graph=True)
    assert all(p.grad is None for p in model.auxiliary.parameters())
    output.auxiliary.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    heads = {id(p) for p in model.head_parameters()}
    assert heads == {id(p) for name, p in model.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("resnet18", "deeplabv2"),
        ("efficientnet_lite1", "fpn"),
        ("mit_b5", "segformer"),
        ("dinov2_b_reg", "dpt"),
        ("dinov3_l", "dpt"),
    ],
)
def test_default_heads(backbone: str, head: str) -> None:
    assert ModelConfig(backbone=backbone).head_name == head
    with torch.device("meta"):
        default, named = (build_model(ModelConfig(backbone=backbone, head=h), 19) for h in (None, head))
    assert default.state_dict().keys() == named.state_dict().keys()


def test_published_sizes_of_whole_networks() -> None:
    def count(**options) -> int:
        with torch.device("meta"):
            model = build_model(ModelConfig(**options), 19)
        return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary."))

    assert count(backbone="mit_b5", head="segformer") == pytest.approx(84.7e6, rel=0.01)  # SegFormer, table 1
    assert count(backbone="mit_b0", head="segformer") == pytest.approx(3.8e6, rel=0.03)
    assert count(backbone="mit_b5", head="daformer") == pytest.approx(85.2e6, rel=0.01)  # DAFormer, section 4
    assert count(backbone="dinov2_s", head="dpt") == pytest.approx(
        22.1e6 + 2.7e6, rel=0.01
    )  # UniMatch V2's logs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "mit_b0", "output_stride": 8},
            "output_stride of mit_b0: found 8, expected none, as the str",
        ),
        ({"backbone": "dinov2_s", "output_stride": 16}, "that of its patch, 14"),
        ({"backbone": "efficientnet_lite0", "output_stride": 4}, "found 4, expected 8, 16 or 32"),
        ({"drop_path": 0.1}, "drop_path of resnet101: found 0.1, expected 0, as ResNets and DRNs have none"),
        ({"backbone": "mit_b0", "aspp_branches": 2}, "aspp_branches of segformer: found 2"),
        ({"hf": "folder"}, "model.hf: found folder, expected none without model.name hf"),
        ({"name": "hf"}, "model.name hf: found no model.hf"),
    ],
)
def test_options_that_a_network_does_not_have(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(ModelConfig(**options), 5)


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether an image's output in training depends on the others."""
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    both, alone = model(images), model(images[:1])
    pairs = ((both.primary, alone.primary), (both.auxiliary, alone.auxiliary))
    return not all(torch.allclose(a[:1], b, rtol=1e-3, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("head", "norm"), [("deeplabv2", "frozen"), ("fpn", "frozen"), ("dpt", "batch")])
def test_batch_statistics_are_told(backbone: str, head: str, norm: str) -> None:
    torch.manual_seed(0)
    config = small(backbone, head=head, norm=norm)
    assert config.batch_statistics == has_batch_statistics(build_model(config, 5).train())


def test_frozen_norms_of_an_efficientnet_are_folded_and_change_nothing() -> None:
    torch.manual_seed(0)
    frozen, plain = (build_model(small("efficientnet_lite0", norm=n), 5) for n in ("frozen", "batch"))
    for tensor in frozen.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    plain.load_state_dict(frozen.state_dict())
    x = torch.randn(1, 3, 61, 90)
    with torch.no_grad():
        for a, b in zip(frozen.train().backbone(x), plain.eval().backbone(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Normalisation


def test_networks_say_which_input_they_expect() -> None:
    with torch.device("meta"):
        lite = build_model(ModelConfig(backbone="efficientnet_lite0"), 5)
        mit = build_model(ModelConfig(backbone="mit_b0"), 5)
        own = build_model(
            ModelConfig(backbone="mit_b0", normalization=Normalization((0, 0, 0), (1, 1, 1))), 5
        )
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4) * 5
    torch.testing.assert_close(normalize(image, normalization_of(lite)), (image.float() - 127) / 128)
    assert normalization_of(mit) == normalization_of(nn.Conv2d(3, 3, 1)) == IMAGENET
    torch.testing.assert_close(normalize(image, normalization_of(own)), image / 255)
    assert normalization_of(MeanNetwork([lite, lite])) == normalization_of(lite)
    wrong = nn.Conv2d(3, 3, 1)
    wrong.normalization = ("mean", "std")
    with pytest.raises(
        InputError, match=r"normalization of Conv2d: found .*expected a udas_fast.models.Normal"
    ):
        normalization_of(wrong)


class Sees(nn.Module):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.normalization = Normalization((0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
        self.images: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images.append(x)
        return torch.zeros(len(x), CLASSES, *x.shape[-2:])


def test_prediction_and_scores_show_a_network_its_own_input() -> None:
    image = torch.randint(0, 256, (3, 8, 10), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.0, 0.5, 1.0), (1.0, 0.5, 0.25)))
    expected = (image.float() / 255 - mean) / std
    model = Sees()
    predict(model, image, (8, 10))
    batch = Batch(image[None], torch.zeros(1, 8, 10, dtype=torch.uint8), ["a"])
    protocol = Protocol(
        dataset="camvid", split="val", images=1, input_size=(8, 10), num_classes=CLASSES, precision="fp32"
    )
    evaluate(model, [batch], CAMVID, protocol)
    assert len(model.images) == 2
    for seen in model.images:
        torch.testing.assert_close(seen[0], expected)


# Files and exports


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_file_holds_all_that_is_needed(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(0)
    config = small(backbone, drop_path=0.0 if backbone == "resnet18" else 0.1)
    saved = TrainedModel(build_model(config, CLASSES).eval(), config, CAMVID, (56, 70))
    saved.save(tmp_path / "model.safetensors")
    loaded = TrainedModel.load(tmp_path / "model.safetensors")
    assert loaded.config == config
    assert normalization_of(loaded.model) == normalization_of(saved.model)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for one, other in zip(loaded.predict(image), saved.predict(image), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_of_another_normalisation_is_refused(tmp_path: Path) -> None:
    model = Sees()
    model.layer = nn.Conv2d(3, 3, 1)
    TrainedModel(model, None, CAMVID, (8, 8)).save(tmp_path / "model.safetensors")
    other = copy.deepcopy(model)
    assert TrainedModel.load(tmp_path / "model.safetensors", model=other).model is other
    other.normalization = IMAGENET
    with pytest.raises(InputError, match="normalisation of .*model.safetensors: found Normalization"):
        TrainedModel.load(tmp_path / "model.safetensors", model=other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "backbone", "head"),
    [
        ("torch", "efficientnet_lite0", "fpn"),
        ("torch", "mit_b0", "segformer"),
        ("onnx", "dinov2_s", "linear"),
    ],
)
def test_exports_agree_at_any_size(tmp_path: Path, form: str, backbone: str, head: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    config = small(backbone, head=head)
    trained = TrainedModel(build_model(config, CLASSES).eval(), config, CAMVID, (64, 96))
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[form]
    agreement = export_model(trained, tmp_path / f"model{suffix}", form)
    assert agreement.largest_difference <= 1e-4 * agreement.largest_logit


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "dinov3_s"])
def test_backbones_compile_in_one_graph(backbone: str) -> None:
    torch.manual_seed(0)
    model = build_model(small(backbone), 5).eval()
    x = torch.randn(1, 3, 56, 64)
    with torch.no_grad():
        expected = model(x).primary
        model.backbone.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(model(x).primary, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "mit_b0", "dinov2_s"])
def test_checkpointing_reaches_the_backbone(backbone: str) -> None:
    model = build_model(small(backbone), 5)
    assert set_checkpointing(model, "all") == 1
    assert "layer1" in model.backbone.checkpointed
