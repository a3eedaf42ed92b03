"""Backbones and networks of transformers by configuration, with random weights: no hub, no code of a model's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from udas_fast.data import CAMVID
from udas_fast.errors import InputError
from udas_fast.inference import TrainedModel
from udas_fast.models import (
    IMAGENET,
    ModelConfig,
    Normalization,
    build_model,
    load_pretrained,
    normalization_of,
    set_checkpointing,
)
from udas_fast.models.backbones.hf import TransformersBackbone, read_configuration

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "dinov2": lambda: transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=8, num_attention_heads=2, image_size=70
    ),
    "dinov3": lambda: transformers.DINOv3ViTConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_register_tokens=4,
    ),
    "swin": lambda: transformers.SwinConfig(embed_dim=12, depths=[1, 2, 1, 1], num_heads=[1, 1, 1, 1]),
    "pvt_v2": lambda: transformers.PvtV2Config(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4]
    ),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]
    ),
}


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    CONFIGS[request.param]().save_pretrained(tmp_path)
    return tmp_path


def test_maps_have_the_channels_and_strides_that_are_announced(folder: Path) -> None:
    backbone = TransformersBackbone(read_configuration(str(folder))).eval()
    height, width = 2 * backbone.multiple, 3 * backbone.multiple
    maps = backbone(torch.randn(2, 3, height + 3, width - 3))  # resized to the nearest multiples
    for m, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert m.shape == (2, channels, height // stride, width // stride)


def test_vision_transformers_give_the_quarters_of_their_blocks(tmp_path: Path) -> None:
    CONFIGS["dinov2"]().save_pretrained(tmp_path)
    backbone = TransformersBackbone(read_configuration(str(tmp_path))).eval()
    reference = transformers.Dinov2Model(CONFIGS["dinov2"]()).eval()
    reference.load_state_dict(backbone.model.state_dict(), strict=False)
    x = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        hidden = reference(x, output_hidden_states=True).hidden_states
        maps = backbone(x)
    for m, block in zip(maps, (2, 4, 6, 8), strict=True):
        expected = reference.layernorm(hidden[block])[:, 1:].transpose(1, 2).unflatten(2, (4, 5))
        torch.testing.assert_close(m, expected)


@pytest.mark.slow
def test_what_learns_gets_a_gradient_and_blocks_rise(folder: Path) -> None:
    backbone = TransformersBackbone(read_configuration(str(folder)))
    sum(m.square().sum() for m in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    numbers = [backbone.block_of(name) for name, _ in backbone.named_parameters()]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(numbers[0], backbone.num_blocks + 1))


@pytest.mark.slow
def test_checkpointing_keeps_less_and_changes_no_gradient(folder: Path) -> None:
    backbone = TransformersBackbone(read_configuration(str(folder)))
    if not backbone.model.supports_gradient_checkpointing:
        pytest.skip("transformers cannot checkpoint it")
    kept, gradients = [], []
    for policy in ("none", "all"):
        set_checkpointing(backbone, policy)
        backbone.zero_grad()
        torch.manual_seed(0)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(m.square().sum() for m in backbone(torch.ones(1, 3, 64, 96)))
        loss.backward()
        kept.append(sum(sizes.values()))
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    assert kept[1] < kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
def test_a_configuration_is_enough_to_build_the_network_again(folder: Path) -> None:
    configuration = read_configuration(str(folder))
    for file in folder.iterdir():
        file.unlink()
    first, second = (TransformersBackbone(configuration).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 64, 96)
    assert all(torch.equal(a, b) for a, b in zip(first(x), second(x), strict=True))


def test_code_of_a_models_own_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoBackbone": "evil.C"}})
    )
    with pytest.raises(InputError, match="expected a model that transformers .* knows"):
        read_configuration(str(tmp_path))
    configuration = {
        "model_type": "dinov2",
        "auto_map": {"AutoBackbone": "evil.C"},
        "_attn_implementation": "x/y",
    }
    configuration |= {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    TransformersBackbone(json.dumps(configuration))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"model_type": "bert"}, "model.hf of type bert: found no backbone in transformers"),
        ({"model_type": "no-such-model"}, "model.hf's configuration: found .*expected one that transformers"),
        ({}, "model.hf's configuration"),
        (
            {"model_type": "hiera", "embed_dim": 12, "depths": [1] * 4, "num_heads": [1] * 4},
            "model.hf of type hiera: found a network for images of one size",
        ),
    ],
)
def test_models_that_cannot_be_backbones(configuration: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransformersBackbone(json.dumps(configuration))


def test_wrong_names() -> None:
    with pytest.raises(InputError, match="model.hf nosuch: found no such folder"):
        read_configuration("nosuch")


# Whole networks by configuration


def folder_of(tmp_path: Path, model: torch.nn.Module, **processor: object) -> str:
    torch.manual_seed(0)
    model.save_pretrained(tmp_path / "there")
    if processor:
        (tmp_path / "there" / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(tmp_path / "there")


def segformer(num_labels: int = 7) -> torch.nn.Module:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            hidden_sizes=[8, 16, 40, 64],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=16,
            num_labels=num_labels,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
        )
    )


def test_a_segmentation_network_keeps_its_weights_but_for_its_classes(tmp_path: Path) -> None:
    reference = segformer().eval()
    name = folder_of(tmp_path, reference)
    network = build_model(ModelConfig(name="hf", hf=name), 5)
    report = load_pretrained(network, name)
    assert {key for key, *_ in report.mismatched} == {
        f"model.decode_head.classifier.{last}" for last in ("weight", "bias")
    }
    assert all(key.startswith("auxiliary.") for key in report.missing)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        hidden = reference.segformer(x, output_hidden_states=True).hidden_states
        output = network.eval()(x)
    assert output.primary.shape == (1, 5, 16, 24)
    torch.testing.assert_close(output.auxiliary, network.auxiliary(hidden[2]))
    heads = {
        key.partition(".")[0]
        for key, p in network.named_parameters()
        if any(p is h for h in network.head_parameters())
    }
    assert heads == {"model", "auxiliary"}
    assert not any(p is h for p in network.model.segformer.parameters() for h in network.head_parameters())


def test_the_same_classes_load_whole(tmp_path: Path) -> None:
    reference = segformer(5).eval()
    name = folder_of(tmp_path, reference)
    network = build_model(ModelConfig(name="hf", hf=name), 5).eval()
    load_pretrained(network, name)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(x).primary, reference(x).logits)


@pytest.mark.slow
def test_a_backbone_gets_a_head_of_the_package(tmp_path: Path) -> None:
    reference = transformers.Dinov2Model(CONFIGS["dinov2"]())
    name = folder_of(tmp_path, reference)
    for head, side in ((None, 8), ("linear", 1), ("upscaling", 4)):
        network = build_model(ModelConfig(name="hf", hf=name, head=head), 5).eval()
        report = load_pretrained(network, name)
        assert report.mismatched == ()
        assert all(key.startswith(("primary.", "auxiliary.")) for key in report.missing)
        assert network(torch.randn(1, 3, 56, 70)).primary.shape == (1, 5, 4 * side, 5 * side)
        assert torch.equal(
            network.backbone.model.encoder.layer[3].mlp.fc1.weight, reference.encoder.layer[3].mlp.fc1.weight
        )


@pytest.mark.slow
def test_files_need_nothing_from_where_the_model_came_from(tmp_path: Path) -> None:
    for model in (segformer(5), transformers.DINOv3ViTModel(CONFIGS["dinov3"]())):
        name = folder_of(tmp_path, model, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
        config = ModelConfig(name="hf", hf=name).resolved()
        assert config.normalization == Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
        network = build_model(config, len(CAMVID)).eval()
        load_pretrained(network, name)
        trained = TrainedModel(network, config, CAMVID, (64, 80))
        trained.save(tmp_path / "model.safetensors")
        shutil.rmtree(name)
        loaded = TrainedModel.load(tmp_path / "model.safetensors")
        assert normalization_of(loaded.model) == config.normalization
        image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        for one, other in zip(loaded.predict(image), trained.predict(image), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({}, None),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True}, ((0.5,) * 3, (0.25,) * 3)),
        ({"do_normalize": False, "do_rescale": True}, ((0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_the_processors_normalisation_is_the_networks(
    tmp_path: Path, processor: dict, expected: tuple | None
) -> None:
    name = folder_of(tmp_path, transformers.Dinov2Model(CONFIGS["dinov2"]()), **processor)
    network = build_model(ModelConfig(name="hf", hf=name), 5)
    assert normalization_of(network) == (IMAGENET if expected is None else Normalization(*expected))


def test_networks_for_bgr_images_are_refused(tmp_path: Path) -> None:
    name = folder_of(tmp_path, segformer(), do_flip_channel_order=True)
    with pytest.raises(InputError, match="found a network for BGR images, expected one for RGB images"):
        build_model(ModelConfig(name="hf", hf=name), 5)


def test_a_licence_in_the_models_card_is_told(tmp_path: Path) -> None:
    name = folder_of(tmp_path, transformers.DINOv3ViTModel(CONFIGS["dinov3"]()))
    Path(name, "README.md").write_text("---\nlicense: other\nlicense_name: dinov3-license\n---\nText\n")
    report = load_pretrained(build_model(ModelConfig(name="hf", hf=name), 5), name)
    assert "licence: dinov3-license" in report.summary()


def test_options_that_the_configuration_sets(tmp_path: Path) -> None:
    name = folder_of(tmp_path, segformer())
    with pytest.raises(InputError, match="model.width: found 8, expected none with model.name hf"):
        build_model(ModelConfig(name="hf", hf=name, width=8), 5)
    with pytest.raises(InputError, match="model.drop_path: found 0.1"):
        build_model(ModelConfig(name="hf", hf=name, drop_path=0.1), 5)
    with pytest.raises(InputError, match="model.hf of type segformer: found no backbone"):
        build_model(ModelConfig(name="hf", hf=name, head="dpt"), 5)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    CONFIGS["dinov2"]().save_pretrained(tmp_path)
    network = build_model(ModelConfig(name="hf", hf=str(tmp_path)), 5)
    with pytest.raises(InputError, match=f"weights of {tmp_path}: found none that can be read"):
        load_pretrained(network, str(tmp_path))
