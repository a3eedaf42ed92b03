"""Backbones against independent implementations: transformers' SegFormer and DINOv2, efficientnet-lite-pytorch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from udas_fast.errors import InputError
from udas_fast.models import CHECKPOINTING, set_checkpointing
from udas_fast.models.backbones import (
    Backbone,
    DropPath,
    EfficientNetLite,
    MixTransformer,
    VisionTransformer,
)
from udas_fast.models.layouts import from_native, layouts_of, to_native


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomize(module: nn.Module) -> None:
    """Weights and statistics of which none is zero or one, so that a mistake in any of them shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            if tensor.dim() > 1:
                tensor.normal_(generator=generator).div_(math.sqrt(tensor[0].numel()))
            elif name.endswith(("weight", "running_var", "gamma", "lambda1")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.3, generator=generator)


def fill_from(model: Backbone, state: dict[str, Tensor], layout: str) -> None:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(to_native(state, layouts_of(model)[layout], shapes))


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def agree(ours: Tensor, reference: Tensor, rtol: float = 1e-9) -> None:
    assert ours.shape == reference.shape
    difference = (ours - reference).norm() / reference.norm()
    assert difference < rtol, difference


# EfficientNet-Lite


def lite_reference(number: int):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    # image_size None: padding by the image at hand
    return package.EfficientNet.from_name(f"efficientnet-lite{number}", image_size=None).eval()


def lite_maps(reference, x: Tensor) -> list[Tensor]:
    """Return the last map of each size from a stride of 4."""
    x = reference._swish(reference._bn0(reference._conv_stem(x)))
    maps: dict[tuple[int, ...], Tensor] = {}
    for block in reference._blocks:
        x = block(x)
        maps[tuple(x.shape[-2:])] = x
    return list(maps.values())[1:]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_is_the_independent_implementation(number: int) -> None:
    reference = lite_reference(number).double()
    randomize(reference)
    model = EfficientNetLite(f"efficientnet_lite{number}", output_stride=32).double().eval()
    top = sum(
        p.numel()
        for name, p in reference.named_parameters()
        if name.startswith(("_conv_head", "_bn1", "_fc"))
    )
    assert count(model) == count(reference) - top
    fill_from(model, reference.state_dict(), "efficientnet-lite-pytorch")
    for size in ((96, 64), (73, 90)):  # even and odd maps are padded otherwise
        x = image(1, 3, *size)
        for ours, theirs, channels in zip(model(x), lite_maps(reference, x), model.channels, strict=True):
            assert ours.shape[1] == channels
            agree(ours, theirs)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_dilated_efficientnet_has_the_strided_one_in_it(output_stride: int, size: tuple[int, int]) -> None:
    strided, dilated = (
        EfficientNetLite(width=8, output_stride=stride).double().eval() for stride in (32, output_stride)
    )
    randomize(strided)
    dilated.load_state_dict(strided.state_dict())
    x = image(1, 3, *size)
    for i, (coarse, fine) in enumerate(zip(strided(x), dilated(x), strict=True)):
        step = strided.strides[i] // dilated.strides[i]
        # TensorFlow pads even maps behind, so that their strided cells sit on the odd ones of a dense map.
        first = 0 if size[0] % 2 else step - 1
        agree(fine[:, :, first::step, first::step], coarse)


# Mix Transformer

MIT_COUNTS = {  # of transformers' SegformerModel at each size
    "mit_b0": 3_319_392,
    "mit_b1": 13_151_424,
    "mit_b2": 24_196_288,
    "mit_b3": 44_072_128,
    "mit_b4": 60_842_688,
    "mit_b5": 81_443_008,
}


def segformer(model: MixTransformer):
    transformers = pytest.importorskip("transformers")
    return transformers.SegformerConfig(
        hidden_sizes=list(model.channels), depths=list(model.depths), drop_path_rate=0.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MIT_COUNTS)
def test_mix_transformers_have_transformers_parameters(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = MixTransformer(name)
        reference = transformers.SegformerModel(segformer(model))
    assert count(model) == count(reference) == MIT_COUNTS[name]


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_mix_transformer_is_transformers_segformer(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    model = MixTransformer("mit_b2", width=8).double().eval()
    reference = transformers.SegformerModel(segformer(model)).double().eval()
    randomize(reference)
    fill_from(model, reference.state_dict(), "transformers 5")
    for module in reference.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # as the authors'; transformers has torch's 1e-5 everywhere
    for embedding in (model.patch_embed1, model.patch_embed2, model.patch_embed3, model.patch_embed4):
        embedding.norm.eps = 1e-6  # torch's in the authors' code
    for module in model.modules():
        if hasattr(module, "sr"):
            module.norm.eps = 1e-6
    x = image(2, 3, *size)
    theirs = reference(x, output_hidden_states=True).hidden_states
    for ours, expected in zip(model(x), theirs, strict=True):
        agree(ours, expected)


def test_mix_transformer_needs_a_few_pixels() -> None:
    model = MixTransformer(width=8)
    assert model(torch.zeros(1, 3, 32, 33))[0].shape == (1, 8, 8, 9)
    with pytest.raises(InputError, match="sides of at least 32"):
        model(torch.zeros(1, 3, 31, 64))


# DINOv2


def dinov2(model: VisionTransformer, image_size: int = 518):
    transformers = pytest.importorskip("transformers")
    heads = model.blocks[0].attn.heads
    registers = model.register_tokens is not None
    config = transformers.Dinov2WithRegistersConfig if registers else transformers.Dinov2Config
    kind = transformers.Dinov2WithRegistersModel if registers else transformers.Dinov2Model
    return kind(
        config(
            hidden_size=model.channels[0],
            num_hidden_layers=model.depth,
            num_attention_heads=heads,
            image_size=image_size,
            patch_size=14,
        )
    )


@pytest.mark.parametrize("size", ["s", "b", "l"])
@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_has_transformers_parameters(size: str, registers: bool) -> None:
    with torch.device("meta"):
        model = VisionTransformer(f"dinov2_{size}" + "_reg" * registers)
        reference = dinov2(model)
    masks = sum(p.numel() for name, p in reference.named_parameters() if name.endswith("mask_token"))
    assert count(model) == count(reference) - masks
    # Published (dinov2's README, model zoo): 21, 86 and 300 million.
    assert count(model) == pytest.approx({"s": 22e6, "b": 86.6e6, "l": 304e6}[size], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2_s", "dinov2_s_reg"])
@pytest.mark.parametrize("size", [(56, 84), (518, 518)])
def test_dinov2_is_transformers(name: str, size: tuple[int, int]) -> None:
    model = VisionTransformer(name, width=12).double().eval()
    reference = dinov2(model).double().eval()
    randomize(reference)
    fill_from(model, reference.state_dict(), "transformers 5")
    x = image(1, 3, *size)
    with torch.no_grad():
        hidden = reference(x, output_hidden_states=True).hidden_states
        maps = model(x)
    # transformers interpolates positions in float32
    rtol = 1e-9 if size == (518, 518) else 1e-6
    height, width = (side // 14 for side in size)
    for ours, block in zip(maps, (3, 6, 9, 12), strict=True):
        tokens = reference.layernorm(hidden[block])[:, -height * width :]
        agree(ours, tokens.transpose(1, 2).unflatten(2, (height, width)), rtol)
    patches = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0)) < 0.7
    with torch.no_grad():
        tokens = reference(x, bool_masked_pos=patches.flatten(1)).last_hidden_state[:, -height * width :]
        ours = model(x, patches)[-1]
    agree(ours, tokens.transpose(1, 2).unflatten(2, (height, width)), rtol)


# DINOv3


def dinov3(model: VisionTransformer):
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=model.channels[0],
        intermediate_size=4 * model.channels[0],
        num_hidden_layers=model.depth,
        num_attention_heads=model.blocks[0].attn.heads,
        num_register_tokens=4,
    )
    return transformers.DINOv3ViTModel(config)


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_dinov3_has_transformers_parameters(size: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(f"dinov3_{size}")
        reference = dinov3(model)
    masks = sum(p.numel() for name, p in reference.named_parameters() if name.endswith("mask_token"))
    assert count(model) == count(reference) - masks
    # Published (dinov3's README, models): 21, 86 and 300 million.
    assert count(model) == pytest.approx({"s": 21.6e6, "b": 85.7e6, "l": 303e6}[size], rel=0.01)


@pytest.mark.parametrize("size", [(64, 96), (80, 48)])
def test_dinov3_is_transformers(size: tuple[int, int]) -> None:
    model = VisionTransformer("dinov3_s", width=48).double().eval()
    reference = dinov3(model).double().eval()
    randomize(reference)
    fill_from(model, reference.state_dict(), "transformers 5")
    x = image(1, 3, *size)
    with torch.no_grad():
        hidden = reference(x, output_hidden_states=True).hidden_states
        maps = model(x)
    height, width = (side // 16 for side in size)
    for ours, block in zip(maps, (3, 6, 9, 12), strict=True):
        tokens = reference.norm(hidden[block][:, -height * width :])
        # transformers has the places in float32
        agree(ours, tokens.transpose(1, 2).unflatten(2, (height, width)), 1e-6)
    patches = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0)) < 0.7
    with torch.no_grad():
        tokens = reference(x, bool_masked_pos=patches.flatten(1)).last_hidden_state[:, -height * width :]
        ours = model(x, patches)[-1]
    agree(ours, tokens.transpose(1, 2).unflatten(2, (height, width)), 1e-6)


def test_images_between_patches_are_resized_to_the_nearest_multiple() -> None:
    model = VisionTransformer(width=12).eval()
    x = torch.randn(1, 3, 50, 90)
    resized = torch.nn.functional.interpolate(x, (56, 84), mode="bilinear", align_corners=False)
    for ours, expected in zip(model(x), model(resized), strict=True):
        assert ours.shape[-2:] == (4, 6)
        assert torch.equal(ours, expected)
    assert model(torch.randn(1, 3, 5, 6))[0].shape[-2:] == (1, 1)


# All of them

SMALL = {
    "efficientnet": lambda **options: EfficientNetLite(width=8, **options),
    "mit": lambda **options: MixTransformer(width=8, **options),
    "vit": lambda **options: VisionTransformer(width=12, **options),
    "rotary": lambda **options: VisionTransformer("dinov3_s", width=24, **options),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return SMALL[request.param]()


def test_every_parameter_learns(small: Backbone) -> None:
    sum(m.square().sum() for m in small(torch.randn(2, 3, 56, 64))).backward()
    assert [name for name, p in small.named_parameters() if p.grad is None] == []


def test_every_parameter_belongs_to_a_block(small: Backbone) -> None:
    numbers = {name: small.block_of(name) for name, _ in small.named_parameters()}
    assert set(numbers.values()) == set(range(small.num_blocks + 1))


def test_strides_and_channels_are_those_of_the_maps(small: Backbone) -> None:
    maps = small(torch.randn(1, 3, 224, 448))
    for m, channels, stride in zip(maps, small.channels, small.strides, strict=True):
        assert m.shape == (1, channels, 224 // stride, 448 // stride)


@pytest.mark.parametrize("kind", SMALL)
def test_layouts_lead_there_and_back(kind: str) -> None:
    model = SMALL[kind]()
    state = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for name, layout in layouts_of(model).items():
        foreign = from_native(state, layout)
        assert len(foreign) == len({n for _, file in layout for n in file})
        back = to_native(foreign, layout, shapes)
        assert back.keys() == state.keys(), name
        assert all(torch.equal(back[n], state[n]) for n in state)


def step(model: Backbone, policy: str, autocast: bool = False) -> list[Tensor]:
    """Return maps and gradients of one step, with images that are dropped, and the buffers after it."""
    set_checkpointing(model, policy)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = model(torch.randn(2, 3, 56, 70))
    sum(m.float().square().sum() for m in maps).backward()
    gradients = [p.grad for p in model.parameters()]
    return [*(m.detach() for m in maps), *gradients, *model.buffers()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_bit(kind: str, autocast: bool) -> None:
    torch.manual_seed(0)
    model = SMALL[kind](drop_path=0.5)
    expected = step(copy.deepcopy(model), "none", autocast)
    for policy in ("layer3", "layers2-4", "all"):
        found = step(copy.deepcopy(model), policy, autocast)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def saved_bytes(model: Backbone, policy: str) -> int:
    """Return the bytes that autograd keeps between forward and backward, the model's own left out."""
    set_checkpointing(model, policy)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(1, 3, 112, 168))
    del output
    return sum(saved.values())


def test_each_policy_keeps_less_than_the_one_before(small: Backbone) -> None:
    kept = [saved_bytes(small, policy) for policy in CHECKPOINTING]
    assert kept == sorted(set(kept), reverse=True)
    assert kept[-1] < 0.5 * kept[0]


def test_autocast_and_channels_last_stay_close_to_float32(small: Backbone) -> None:
    small.eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = small(x)
        last = small.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = small(x)
    for a, b, c in zip(expected, last, half, strict=True):
        agree(b, a, 1e-5)
        agree(c.float(), a, 0.1)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(4000, 2, 3))
    kept = y[:, 0, 0] != 0
    assert torch.equal(y, kept[:, None, None].float().expand_as(y) / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drop.eval()(y), y)


@pytest.mark.parametrize("kind", SMALL)
def test_the_last_block_is_dropped_most(kind: str) -> None:
    model = SMALL[kind](drop_path=0.3)
    rates = [module.p for module in model.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] <= 0.3 < rates[-1] + 0.3 / len(rates) + 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EfficientNetLite("efficientnet_lite4"),
            "backbone: found 'efficientnet_lite4'.*did you mean",
        ),
        (
            lambda: EfficientNetLite(output_stride=4),
            "output_stride of efficientnet_lite0: found 4, expected 8, 16 or 32",
        ),
        (lambda: EfficientNetLite(norm="bach"), "norm: found 'bach'"),
        (lambda: MixTransformer("mit_b6"), "backbone: found 'mit_b6'"),
        (lambda: MixTransformer(width=0), "width: found 0"),
        (lambda: VisionTransformer("dinov2_m"), "backbone: found 'dinov2_m'"),
        (
            lambda: VisionTransformer(width=16),
            "width of dinov2_s: found 16, expected a multiple of 6, as it has 6 heads",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
