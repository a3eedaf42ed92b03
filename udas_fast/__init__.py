"""Domain-adaptive semantic segmentation: fused operators, and the training recipes built on them.

The names below are imported when they are first used, so that ``import udas_fast`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from udas_fast._build import __version__, warn_where_missing

if TYPE_CHECKING:
    from udas_fast import data, models, nn, objectives, ops, recipes
    from udas_fast.data.domains import DataConfig
    from udas_fast.engine.callbacks import Callback
    from udas_fast.inference import TrainedModel, load
    from udas_fast.ops import build_info
    from udas_fast.recipes import Recipe, Stage, get_recipe, list_recipes
    from udas_fast.training.trainer import Trainer

__all__ = [
    "Callback",
    "DataConfig",
    "Recipe",
    "Stage",
    "TrainedModel",
    "Trainer",
    "__version__",
    "build_info",
    "data",
    "get_recipe",
    "list_recipes",
    "load",
    "models",
    "nn",
    "objectives",
    "ops",
    "recipes",
]

#: Module of each name that is not a submodule.
_HOMES = {
    "Callback": "udas_fast.engine.callbacks",
    "DataConfig": "udas_fast.data.domains",
    "Recipe": "udas_fast.recipes",
    "Stage": "udas_fast.recipes",
    "TrainedModel": "udas_fast.inference",
    "Trainer": "udas_fast.training.trainer",
    "build_info": "udas_fast.ops",
    "get_recipe": "udas_fast.recipes",
    "list_recipes": "udas_fast.recipes",
    "load": "udas_fast.inference",
}

warn_where_missing()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"udas_fast.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
