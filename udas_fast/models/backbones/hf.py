"""Backbones of an installed transformers by their configuration (``pip install "udas-fast[hf]"``).

A configuration is kept as JSON, so that a network can be built again without the folder or hub it came from. Code that
comes with a model is never run.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udas_fast.errors import InputError, bad, first_line
from udas_fast.models.backbones.base import Backbone, Maps, fit_to_multiple

PACKAGE = 'pip install "udas-fast[hf]"'
PROBE = 224  # sides of the image whose maps give channels and strides: a multiple of 14, 16 and 32
#: Keys of a configuration that could bring in code or weights from elsewhere, or say where it came from.
DROPPED = ("auto_map", "attn_implementation", "use_pretrained_backbone", "id2label", "label2id")


class TransformersBackbone(Backbone):
    """Backbone of transformers with the maps of its last four stages, or of the quarters of a plain ViT's blocks.

    An image whose sides are not multiples of the last map's stride is resized to the nearest ones. Checkpointing
    policy "all" checkpoints the layers that transformers can, the other policies nothing. Norms are transformers' own.

    configuration: from :func:`read_configuration`; drop_path: rate of the last block. Raises InputError for a model
    that this transformers cannot build as a backbone of four maps.
    """

    def __init__(self, configuration: str, *, drop_path: float = 0.0) -> None:
        super().__init__()
        config = make_configuration(configuration)
        if not has_class(config, "AutoBackbone"):
            raise bad(f"model.hf of type {config.model_type}", "no backbone in transformers", "another model")
        if hasattr(config, "drop_path_rate"):
            config.drop_path_rate = drop_path
        elif drop_path:
            raise bad(f"drop_path of {config.model_type}", drop_path, "0, as it has none")
        _select_stages(config)
        with torch.device("meta"), torch.enable_grad():
            probe = build("AutoBackbone", config)
            maps = probe(torch.zeros(1, 3, PROBE, PROBE)).feature_maps
            sum(m.sum() for m in maps).backward()
            try:
                probe(torch.zeros(1, 3, PROBE, 2 * PROBE))
            except RuntimeError as error:
                found = f"a network for images of one size ({first_line(error):.200})"
                raise bad(f"model.hf of type {config.model_type}", found, "one for any size") from error
        if len(maps) != 4:
            raise bad(f"model.hf of type {config.model_type}", f"{len(maps)} maps", "four")
        c1, c2, c3, c4 = (m.shape[1] for m in maps)
        s1, s2, s3, s4 = (round(PROBE / m.shape[-1]) for m in maps)
        self.channels, self.strides = (c1, c2, c3, c4), (s1, s2, s3, s4)
        self.multiple = s4
        self.model = build("AutoBackbone", config)
        for parameter, probed in zip(self.model.parameters(), probe.parameters(), strict=True):
            parameter.requires_grad_(
                probed.grad is not None
            )  # mask tokens, norms of maps that are not asked for
        self._blocks = number_blocks(self.model)

    def stages(self, x: Tensor) -> Maps:
        """Return the maps of the four stages."""
        set_gradient_checkpointing(self.model, "stem" in self.checkpointed)
        first, second, third, fourth = self.model(fit_to_multiple(x, self.multiple)).feature_maps
        return first, second, third, fourth

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return max(self._blocks.values())

    def block_of(self, name: str) -> int:
        """Return the number of the block of the parameter ``name``; 0: parameters before the first block."""
        return self._blocks[name.removeprefix("model.")]


def read_configuration(name: str) -> str:
    """Return the configuration of a model of transformers as JSON.

    name: a folder with config.json or, where the hub may be asked, a name on it (``HF_HUB_OFFLINE`` holds).

    Raises:
        InputError: transformers is not installed, there is no such model, or it needs code of its own.
    """
    transformers = import_transformers()
    if "/" not in name and not Path(name).exists():
        raise bad(f"model.hf {name}", "no such folder", "a folder with config.json, or OWNER/NAME on the hub")
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (
        Exception
    ) as error:  # a wrong name, no network, an unknown type: the hub's and transformers' own errors
        expected = f"a model that transformers {transformers.__version__} knows"
        raise bad(
            f"model.hf {name}", f"none that can be read ({first_line(error):.200})", expected
        ) from error
    return json.dumps(_safe(json.loads(config.to_json_string(use_diff=False))), sort_keys=True)


def make_configuration(configuration: str) -> Any:
    """Return the configuration object of :func:`read_configuration`'s JSON.

    Raises:
        InputError: transformers is not installed, or does not know the type of model.
    """
    transformers = import_transformers()
    try:
        values = _safe(json.loads(configuration))
        return transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # whatever the constructors of two hundred configurations raise
        expected = f"one that transformers {transformers.__version__} knows"
        raise bad("model.hf's configuration", first_line(error)[:200], expected) from error


def has_class(config: Any, auto: str) -> bool:
    """Check whether transformers' class ``auto``, such as "AutoBackbone", has one for ``config``."""
    return type(config) in getattr(import_transformers(), auto)._model_mapping


def describe(configuration: str) -> set[str]:
    """Return what transformers can build of a configuration: "segmentation", "backbone", both or none."""
    config = make_configuration(configuration)
    autos = {"segmentation": "AutoModelForSemanticSegmentation", "backbone": "AutoBackbone"}
    return {kind for kind, auto in autos.items() if has_class(config, auto)}


def build(auto: str, config: Any) -> nn.Module:
    """Build a network with random weights by ``auto``, such as "AutoBackbone", from ``config``.

    Raises:
        InputError: transformers cannot build it.
    """
    try:
        return getattr(import_transformers(), auto).from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the constructors of a hundred networks raise
        found = f"{auto} cannot be built ({first_line(error):.200})"
        raise InputError(f"model.hf of type {config.model_type}: {found}") from error


def set_gradient_checkpointing(model: Any, checkpointed: bool) -> None:
    """Turn transformers' own checkpointing on or off, if ``model`` supports it."""
    # Renamed in transformers 5.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if not model.supports_gradient_checkpointing or checkpointed == getattr(
        model, f"is_{name}_checkpointing"
    ):
        return
    if checkpointed:
        options = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(model, f"{name}_checkpointing_enable")(**options)
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def number_blocks(model: nn.Module) -> dict[str, int]:
    """Return the number of the block of each parameter, by the numbers in its name; 0: before the first block."""
    blocks: set[str] = set()
    numbers = {}
    for name, _ in model.named_parameters():
        found = re.match(r"(.*\.\d+)\.", name)
        if found is not None:
            blocks.add(found[1])
        numbers[name] = len(blocks)
    return numbers


def import_transformers() -> Any:
    """Return the module transformers. Raises InputError if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise bad("model.name hf", "no transformers", PACKAGE)
    import transformers

    return transformers


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing what is reported in another form."""
    logging = import_transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _select_stages(config: Any) -> None:
    """Let a backbone return the last four stages of a pyramid, or those at the quarters of a ViT's blocks."""
    stages = [name for name in config.stage_names if not name.startswith("stem")]
    depth = len(stages)
    names = stages[-4:] if depth <= 6 else [stages[depth * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]
    config.set_output_features_output_indices(out_features=names, out_indices=None)


def _safe(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without what could bring in code, at any depth."""
    return {
        key: _safe(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in DROPPED and not key.startswith("_")
    }
