"""Segmentation networks of an installed transformers, and the weights of its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from udas_fast.errors import bad, first_line
from udas_fast.models.backbones.base import fit_to_multiple
from udas_fast.models.backbones.hf import (
    PROBE,
    TransformersBackbone,
    build,
    import_transformers,
    make_configuration,
    quiet_transformers,
    set_gradient_checkpointing,
)
from udas_fast.models.checkpointing import CHECKPOINTING
from udas_fast.models.fcn import FCNHead
from udas_fast.models.normalization import IMAGENET, Normalization
from udas_fast.models.segmentation import BackboneNetwork, SegmentationNetwork
from udas_fast.models.weights import WeightsReport

AUTO = "AutoModelForSemanticSegmentation"


class TransformersNetwork(SegmentationNetwork):
    """Segmentation network of transformers, with an auxiliary head on the last but one of its inner maps.

    A network whose inner states are not maps has no auxiliary head. Sides of an image that are not multiples of a
    plain ViT's patch are resized to the nearest ones. Checkpointing policy "all" checkpoints what transformers can.

    configuration: from :func:`udas_fast.models.backbones.hf.read_configuration`; norm, dropout: of the auxiliary head.

    Raises:
        InputError: transformers cannot build or run it.
    """

    normalization = IMAGENET

    def __init__(self, configuration: str, num_classes: int, *, norm: str, dropout: float) -> None:
        super().__init__(num_classes)
        config = make_configuration(configuration)
        config.num_labels = num_classes
        patch = getattr(config, "patch_size", 1)
        self.multiple = patch if isinstance(patch, int) else 1
        self.checkpointed = CHECKPOINTING["none"]
        with torch.device("meta"), torch.enable_grad():
            self.model: Any = build(AUTO, config)
            try:
                primary, inner = self._run(torch.zeros(1, 3, PROBE, PROBE))
            except Exception as error:  # whatever a network of transformers raises
                found = f"a network that cannot be run ({first_line(error):.200})"
                raise bad(f"model.hf of type {config.model_type}", found, "another model") from error
            (primary.sum() if inner is None else primary.sum() + inner.sum()).backward()
        used = {name for name, parameter in self.model.named_parameters() if parameter.grad is not None}
        self.model = build(AUTO, config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in used)
        self.auxiliary = None if inner is None else FCNHead(inner.shape[1], num_classes, norm, dropout)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map a normalised image, float [N, 3, H, W], to (primary, auxiliary) logits."""
        set_gradient_checkpointing(self.model, "stem" in self.checkpointed)
        primary, inner = self._run(x)
        return primary, None if self.auxiliary is None else self.auxiliary(inner)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits and the last but one inner map; None: there are not two of them."""
        output = self.model(fit_to_multiple(x, self.multiple), output_hidden_states=True)
        maps = [state for state in output.hidden_states or () if state.dim() == 4]
        return output.logits, maps[-2] if len(maps) > 1 else None

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of both heads: all that is not the model's encoder."""
        encoders = (f"model.{self.model.base_model_prefix or 'backbone'}.", "model.backbone.")
        return (p for name, p in self.named_parameters() if not name.startswith(encoders))


def read_normalization(name: str) -> Normalization | None:
    """Return the normalisation in a model's ``preprocessor_config.json``; None if it has no such file.

    name: as for :func:`udas_fast.models.backbones.hf.read_configuration`.

    Raises:
        InputError: the model expects images that are not RGB.
    """
    import_transformers()
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return None
    if values.get("do_flip_channel_order"):
        raise bad(f"model.hf {name}", "a network for BGR images", "one for RGB images")
    if not values.get("do_normalize", "image_mean" in values):
        return Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Normalization(
        *(
            tuple(values.get(key) or default)
            for key, default in (("image_mean", IMAGENET.mean), ("image_std", IMAGENET.std))
        )
    )


def load_pretrained(network: nn.Module, name: str) -> WeightsReport:
    """Copy the weights of the model ``name`` of transformers into a network that was built from its configuration.

    name: a folder, or OWNER/NAME on the hub.

    Raises:
        InputError: there are no weights that can be read.
    """
    target: Any
    if isinstance(network, TransformersNetwork):
        target, prefix = network.model, "model."
    elif isinstance(network, BackboneNetwork) and isinstance(network.backbone, TransformersBackbone):
        target, prefix = network.backbone.model, "backbone.model."
    else:
        raise bad("weights of transformers", type(network).__name__, "a network with model.name hf")
    try:
        with quiet_transformers():
            model, info = type(target).from_pretrained(
                name,
                config=target.config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (
        Exception
    ) as error:  # no such file, no network, damaged data: the hub's and transformers' own errors
        raise bad(
            f"weights of {name}", f"none that can be read ({first_line(error):.200})", "weights"
        ) from error
    odd = {key: (tuple(found), tuple(expected)) for key, found, expected in info["mismatched_keys"]}
    left = {*info["missing_keys"], *odd}
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in left}
    target.load_state_dict(state, strict=False)
    unexpected = tuple(sorted(info["unexpected_keys"]))
    own = list(network.state_dict())
    loaded = tuple(key for key in own if key.removeprefix(prefix) in state and key.startswith(prefix))
    return WeightsReport(
        path=name,
        loaded=loaded,
        missing=tuple(key for key in own if key not in loaded and key.removeprefix(prefix) not in odd),
        mismatched=tuple((prefix + key, *shapes) for key, shapes in odd.items()),
        unexpected=unexpected,
        ignored=(),
        file_keys=(*state, *odd, *unexpected),
        caffe_input=False,
        layout="transformers",
        notes=tuple(f"licence: {licence}" for licence in _licence(name)),
    )


def _licence(name: str) -> list[str]:
    """Return the licence in a model's card; nothing if it has no card or none in it."""
    file = Path(name) / "README.md"
    try:
        if not Path(name).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(name, "README.md"))
        _, card, _ = file.read_text(encoding="utf-8").split("---", 2)
        values = yaml.safe_load(card)
        licence = values["license"]
        return [str(values.get("license_name", licence) if licence == "other" else licence)]
    except Exception:  # a card is a courtesy
        return []
