"""Names of published state dicts beside this package's, which are those of the networks' authors, torchvision or timm.

A layout is a list of pairs (this package's names, the file's names); the tensors of either side, concatenated along
dimension 0, are the same. Most pairs have one name on each side; fused projections have several on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from udas_fast.models.backbones import (
    Backbone,
    EfficientNetLite,
    MixTransformer,
    ResNet,
    VisionTransformer,
)
from udas_fast.models.backbones.efficientnet import MBConv
from udas_fast.models.heads import DAFormerHead, DPTHead, SegFormerHead

Names = tuple[str, ...]
Layout = list[tuple[Names, Names]]

AFFINE = ("weight", "bias")
BATCH_NORM = (*AFFINE, "running_mean", "running_var", "num_batches_tracked")


def layouts_of(backbone: nn.Module) -> dict[str, Layout]:
    """Return the layouts that state dicts of ``backbone`` are published in, by name, its own left out."""
    if isinstance(backbone, ResNet):
        return {"transformers": list(_resnet(backbone))}
    if isinstance(backbone, EfficientNetLite):
        return {"efficientnet-lite-pytorch": list(_efficientnet(backbone))}
    if isinstance(backbone, MixTransformer):
        return {name: list(_mit(backbone, *parts)) for name, parts in MIT.items()}
    if isinstance(backbone, VisionTransformer):
        if backbone.pos_embed is None:
            return {name: list(_vit(backbone, names)) for name, names in DINOV3.items()}
        layouts = {name: list(_vit(backbone, names)) for name, names in VIT.items()}
        return layouts | {"timm": _timm_vit(backbone)}
    return {}


def network_layouts(model: nn.Module) -> dict[str, Layout]:
    """Return the layouts of a network's or a backbone's published state dicts by name, heads included where known."""
    if isinstance(model, Backbone):
        return {"": _own(model), **layouts_of(model)}
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        return {}
    inner = {"": _own(backbone), **layouts_of(backbone)}
    layouts = {
        name: [(tuple(f"backbone.{n}" for n in ours), file) for ours, file in layout]
        for name, layout in inner.items()
    }
    for name, (body, start, head) in _head_layouts(model).items():
        files = [(ours, tuple(start + n for n in file)) for ours, file in layouts[body]]
        layouts[name] = [*files, *head]
    return layouts


def _own(backbone: nn.Module) -> Layout:
    return [((name,), (name,)) for name in backbone.state_dict()]


def _head_layouts(model: nn.Module) -> dict[str, tuple[str, str, Layout]]:
    """Return by name: the layout of the backbone, what stands before its names, and the head's layout."""
    head = getattr(model, "primary", None)
    if isinstance(head, SegFormerHead):
        return {
            "transformers' SegFormer": ("transformers", "segformer.", list(_segformer(*HUB_SEGFORMER))),
            "SegFormer": ("", "backbone.", list(_segformer(*SEGFORMER))),
        }
    if isinstance(head, DAFormerHead):
        return {"DAFormer": ("", "backbone.", list(_daformer()))}
    if isinstance(head, DPTHead):
        return {"UniMatch V2": ("", "backbone.", list(_dpt()))}
    return {}


def to_native(
    state: Mapping[str, Tensor], layout: Layout, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Return what ``state`` has of ``layout``, under this package's names.

    A tensor whose shape differs from the network's in sides of 1 alone takes that: linear layers are published as
    1x1 convolutions too. A pair is left out where ``state`` lacks one of its names.
    """
    native: dict[str, Tensor] = {}
    for ours, file in layout:
        if all(name in state for name in file):
            tensors = _split(_joined(state, file), [shapes[name] for name in ours])
            native |= dict(zip(ours, tensors, strict=True))
    return native


def from_native(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return what ``state`` has of ``layout``, under the file's names; a fused tensor is cut in equal parts."""
    foreign: dict[str, Tensor] = {}
    for ours, file in layout:
        if all(name in state for name in ours):
            whole = _joined(state, ours)
            parts = whole.chunk(len(file)) if len(file) > 1 else (whole,)
            foreign |= dict(zip(file, parts, strict=True))
    return foreign


def _joined(state: Mapping[str, Tensor], names: Names) -> Tensor:
    first, *others = (state[name] for name in names)
    return torch.cat([first, *others]) if others else first


def _split(whole: Tensor, shapes: list[torch.Size]) -> Iterator[Tensor]:
    """Yield parts of ``whole`` as long as ``shapes``, or in their proportion where it has another length."""
    parts = [whole]
    if len(shapes) > 1:
        lengths = [shape[0] for shape in shapes]
        ends = [len(whole) * end // sum(lengths) for end in accumulate(lengths)]
        parts = list(whole.tensor_split(ends[:-1]))
    for part, shape in zip(parts, shapes, strict=True):
        same = [n for n in part.shape if n > 1] == [n for n in shape if n > 1]
        yield part.reshape(shape) if same else part


def _pairs(ours: str, file: str | Names, suffixes: Iterable[str]) -> Iterator[tuple[Names, Names]]:
    """Yield a pair for each suffix of a module's names."""
    files = (file,) if isinstance(file, str) else file
    for suffix in suffixes:
        yield (f"{ours}.{suffix}",), tuple(f"{name}.{suffix}" for name in files)


def _resnet(backbone: ResNet) -> Iterator[tuple[Names, Names]]:
    def unit(conv: str, norm: str, file: str) -> Iterator[tuple[Names, Names]]:
        yield (f"{conv}.weight",), (f"{file}.convolution.weight",)
        yield from _pairs(norm, f"{file}.normalization", BATCH_NORM)

    yield from unit("conv1", "bn1", "embedder.embedder")
    for stage in range(4):
        for i, block in enumerate(getattr(backbone, f"layer{stage + 1}")):
            ours, file = f"layer{stage + 1}.{i}", f"encoder.stages.{stage}.layers.{i}"
            convolutions = sum(name.startswith("conv") for name, _ in block.named_children())
            for k in range(convolutions):
                yield from unit(f"{ours}.conv{k + 1}", f"{ours}.bn{k + 1}", f"{file}.layer.{k}")
            if block.downsample is not None:
                yield from unit(f"{ours}.downsample.0", f"{ours}.downsample.1", f"{file}.shortcut")


def _efficientnet(backbone: EfficientNetLite) -> Iterator[tuple[Names, Names]]:
    yield ("conv_stem.weight",), ("_conv_stem.weight",)
    yield from _pairs("bn1", "_bn0", BATCH_NORM)
    blocks = [
        (name, module.expands) for name, module in backbone.named_modules() if isinstance(module, MBConv)
    ]
    for number, (ours, expands) in enumerate(blocks):
        convolutions = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
        published = ("_expand_conv", "_depthwise_conv", "_project_conv")[-len(convolutions) :]
        for k, (conv, name) in enumerate(zip(convolutions, published, strict=True)):
            yield (f"{ours}.{conv}.weight",), (f"_blocks.{number}.{name}.weight",)
            norm = f"_bn{k + 3 - len(convolutions)}"
            yield from _pairs(f"{ours}.bn{k + 1}", f"_blocks.{number}.{norm}", BATCH_NORM)


#: By layout: names of the three parts of a stage, of a block's parts and of its projections to queries, keys, values.
MIT: dict[str, tuple[tuple[str, str, str, str], dict[str, str], Names]] = {
    "transformers": (
        (
            "encoder.patch_embeddings.{}.proj",
            "encoder.patch_embeddings.{}.layer_norm",
            "encoder.block.{}",
            "encoder.layer_norm.{}",
        ),
        {
            "norm1": "layer_norm_1",
            "attn.proj": "attention.output.dense",
            "attn.sr": "attention.self.sr",
            "attn.norm": "attention.self.layer_norm",
            "norm2": "layer_norm_2",
            "mlp.fc1": "mlp.dense1",
            "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
            "mlp.fc2": "mlp.dense2",
        },
        ("attention.self.query.", "attention.self.key.", "attention.self.value."),
    ),
    "transformers 5": (
        (
            "stages.{}.patch_embeddings.proj",
            "stages.{}.patch_embeddings.layer_norm",
            "stages.{}.blocks",
            "stages.{}.layer_norm",
        ),
        {
            "norm1": "layernorm_before",
            "attn.proj": "attention.o_proj",
            "attn.sr": "attention.sequence_reduction.sequence_reduction",
            "attn.norm": "attention.sequence_reduction.layer_norm",
            "norm2": "layernorm_after",
            "mlp.fc1": "mlp.fc1",
            "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
            "mlp.fc2": "mlp.fc2",
        },
        ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
    ),
    "mmsegmentation": (
        ("layers.{}.0.projection", "layers.{}.0.norm", "layers.{}.1", "layers.{}.2"),
        {
            "norm1": "norm1",
            "attn.proj": "attn.attn.out_proj",
            "attn.sr": "attn.sr",
            "attn.norm": "attn.norm",
            "norm2": "norm2",
            "mlp.fc1": "ffn.layers.0",
            "mlp.dwconv.dwconv": "ffn.layers.1",
            "mlp.fc2": "ffn.layers.4",
        },
        ("attn.attn.in_proj_",),
    ),
}


def _mit(
    backbone: MixTransformer, stage_parts: tuple[str, str, str, str], block_parts: dict[str, str], qkv: Names
) -> Iterator[tuple[Names, Names]]:
    own = backbone.state_dict()
    for stage, depth in enumerate(backbone.depths):
        proj, embedded, blocks, norm = (part.format(stage) for part in stage_parts)
        yield from _pairs(f"patch_embed{stage + 1}.proj", proj, AFFINE)
        yield from _pairs(f"patch_embed{stage + 1}.norm", embedded, AFFINE)
        yield from _pairs(f"norm{stage + 1}", norm, AFFINE)
        for i in range(depth):
            ours, file = f"block{stage + 1}.{i}", f"{blocks}.{i}"
            for part, name in block_parts.items():
                if f"{ours}.{part}.weight" in own:  # the last stage reduces nothing
                    yield from _pairs(f"{ours}.{part}", f"{file}.{name}", AFFINE)
            for suffix in AFFINE:
                names = tuple(f"{file}.{name}{suffix}" for name in qkv)
                if len(names) == 1:
                    yield (f"{ours}.attn.q.{suffix}", f"{ours}.attn.kv.{suffix}"), names
                else:
                    yield (f"{ours}.attn.q.{suffix}",), names[:1]
                    yield (f"{ours}.attn.kv.{suffix}",), names[1:]


@dataclass(frozen=True)
class ViTNames:
    """Names that differ between the layouts of a vision transformer."""

    patch: str = "embeddings.patch_embeddings.projection"
    block: str = "encoder.layer.{}"
    qkv: Names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    proj: str = "attention.o_proj"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    norm: str = "layernorm"


VIT = {
    "transformers": ViTNames(
        qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        proj="attention.output.dense",
    ),
    "transformers 5": ViTNames(),
}
DINOV3 = {
    name: ViTNames(
        patch="embeddings.patch_embeddings",
        block=block,
        fc1="mlp.up_proj",
        fc2="mlp.down_proj",
        norm="norm",
    )
    for name, block in (("transformers", "layer.{}"), ("transformers 5", "model.layer.{}"))
}


def _vit(backbone: VisionTransformer, names: ViTNames) -> Iterator[tuple[Names, Names]]:
    own = backbone.state_dict()
    tokens = {
        "cls_token": "cls_token",
        "pos_embed": "position_embeddings",
        "register_tokens": "register_tokens",
        "mask_token": "mask_token",
    }
    for name, file in tokens.items():
        if name in own:
            yield (name,), (f"embeddings.{file}",)
    yield from _pairs("patch_embed.proj", names.patch, AFFINE)
    parts = {"norm1": "norm1", "norm2": "norm2", "attn.proj": names.proj, "mlp.fc1": names.fc1}
    parts["mlp.fc2"] = names.fc2
    for i in range(backbone.depth):
        ours, file = f"blocks.{i}", names.block.format(i)
        qkv = [f"{file}.{name}" for name in names.qkv]
        yield (f"{ours}.attn.qkv.weight",), tuple(f"{name}.weight" for name in qkv)
        if f"{ours}.attn.qkv.bias" in own:
            yield (f"{ours}.attn.qkv.bias",), tuple(f"{name}.bias" for name in qkv)
        else:
            yield (f"{ours}.attn.q_bias",), (f"{qkv[0]}.bias",)
            yield (f"{ours}.attn.v_bias",), (f"{qkv[2]}.bias",)
        for part, name in parts.items():
            yield from _pairs(f"{ours}.{part}", f"{file}.{name}", AFFINE)
        for k in (1, 2):
            yield (f"{ours}.ls{k}.gamma",), (f"{file}.layer_scale{k}.lambda1",)
    yield from _pairs("norm", names.norm, AFFINE)


def _timm_vit(backbone: VisionTransformer) -> Layout:
    """Return timm's layout of DINOv2, which names the registers otherwise and nothing else."""
    renamed = {"register_tokens": "reg_token"}
    return [((name,), (renamed.get(name, name),)) for name in backbone.state_dict()]


#: Names of SegFormer's projections (by the number of the map), fusion, norm and classifier.
HUB_SEGFORMER = (
    [f"decode_head.linear_c.{i}.proj" for i in range(4)],
    "decode_head.linear_fuse",
    "decode_head.batch_norm",
    "decode_head.classifier",
)
SEGFORMER = (
    [f"decode_head.linear_c{i}.proj" for i in range(1, 5)],
    "decode_head.linear_fuse.conv",
    "decode_head.linear_fuse.bn",
    "decode_head.linear_pred",
)


def _segformer(
    projections: list[str], fuse: str, norm: str, classifier: str
) -> Iterator[tuple[Names, Names]]:
    for i, name in enumerate(projections):
        yield from _pairs(f"primary.project.{i}", name, AFFINE)
    yield from _pairs("primary.fuse", fuse, ("weight",))
    yield from _pairs("primary.norm", norm, BATCH_NORM)
    yield from _pairs("primary.classifier", classifier, AFFINE)


def _daformer() -> Iterator[tuple[Names, Names]]:
    def unit(ours: str, file: str) -> Iterator[tuple[Names, Names]]:
        yield from _pairs(f"{ours}.0", f"{file}.conv", ("weight",))
        yield from _pairs(f"{ours}.1", f"{file}.bn", BATCH_NORM)

    for i in range(4):
        yield from _pairs(f"primary.project.{i}", f"decode_head.embed_layers.{i}.proj", AFFINE)
    fuse = "decode_head.fuse_layer"
    yield from unit("primary.branches.0", f"{fuse}.aspp_modules.0")
    for i in (1, 2, 3):
        for k, part in enumerate(("depthwise_conv", "pointwise_conv")):
            yield from unit(f"primary.branches.{i}.{k}", f"{fuse}.aspp_modules.{i}.{part}")
    yield from unit("primary.bottleneck", f"{fuse}.bottleneck")
    yield from _pairs("primary.classifier", "decode_head.conv_seg", AFFINE)


def _dpt() -> Iterator[tuple[Names, Names]]:
    for i in range(4):
        yield from _pairs(f"primary.project.{i}", f"head.projects.{i}", AFFINE)
        if i != 2:
            yield from _pairs(f"primary.resize.{i}", f"head.resize_layers.{i}", AFFINE)
        yield from _pairs(f"primary.reduce.{i}", f"head.scratch.layer{i + 1}_rn", ("weight",))
        ours, file = f"primary.fuse.{i}", f"head.scratch.refinenet{i + 1}"
        yield from _pairs(f"{ours}.project", f"{file}.out_conv", AFFINE)
        for unit in (1, 2) if i < 3 else (2,):
            for conv in ("conv1", "conv2"):
                yield from _pairs(f"{ours}.unit{unit}.{conv}", f"{file}.resConfUnit{unit}.{conv}", AFFINE)
    yield from _pairs("primary.smooth", "head.scratch.output_conv.0", AFFINE)
    yield from _pairs("primary.classifier", "head.scratch.output_conv.2", AFFINE)
