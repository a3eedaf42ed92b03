"""Backbones of transformers by configuration, with random weights: no hub, no code of a model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import set_checkpointing
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


def test_what_learns_gets_a_gradient_and_blocks_rise(folder: Path) -> None:
    backbone = TransformersBackbone(read_configuration(str(folder)))
    sum(m.square().sum() for m in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    numbers = [backbone.block_of(name) for name, _ in backbone.named_parameters()]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(numbers[0], backbone.num_blocks + 1))


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
