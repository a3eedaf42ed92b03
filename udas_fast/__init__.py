"""Domain-adaptive semantic segmentation: fused operators, and the training recipes that live on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from udas_fast._build import __version__, build_info, warn_where_missing

if TYPE_CHECKING:
    from udas_fast.inference import TrainedModel
    from udas_fast.training.trainer import Trainer

__all__ = ["TrainedModel", "Trainer", "__version__", "build_info"]

warn_where_missing()


def __getattr__(name: str) -> Any:
    if name == "Trainer":  # late: torch and the models take a second to import
        from udas_fast.training.trainer import Trainer

        return Trainer
    if name == "TrainedModel":
        from udas_fast.inference import TrainedModel

        return TrainedModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
