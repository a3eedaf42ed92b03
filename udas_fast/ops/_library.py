"""Loading of the compiled operators, and which device has which."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udas_fast._build import BUILD_HINT, __version__
from udas_fast.errors import InputError

OPERATORS = (
    "region_mix",
    "upsample",
    "pseudo_label",
    "cross_entropy",
    "symmetric_kl",
    "ensemble_kl",
    "distillation_kl",
    "rectified_cross_entropy",
    "entropy",
    "confusion_matrix",
)
OLDEST_TORCH = (2, 11)


def _load() -> str:
    """Import the extension, which registers the operators; return '' or the reason why there are none."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        return f"torch is {torch.__version__}, the compiled operators need 2.11 or later"
    try:
        import udas_fast._C  # noqa: F401
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) or (
            "_C" in str(error) and "cannot import" in str(error)
        )
        return "the extension was not built" if missing else f"the extension does not load: {error}"
    return ""


def _devices(name: str) -> frozenset[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(key.lower() for key in ("CPU", "CUDA") if not REASON and has(f"udas_fast::{name}", key))


REASON = _load()
COMPILED = {name: _devices(name) for name in OPERATORS}
if REASON and "not built" not in REASON:
    warnings.warn(f"udas_fast: {REASON}; plain PyTorch runs instead", RuntimeWarning, stacklevel=2)
elif not REASON and torch.cuda.device_count() > 0 and "cuda" not in COMPILED["cross_entropy"]:
    warnings.warn(
        f"udas_fast: there is a GPU but no compiled CUDA operator; plain PyTorch runs there ({BUILD_HINT})",
        RuntimeWarning,
        stacklevel=2,
    )


def backends() -> dict[str, dict[str, str]]:
    """Return for each operator what runs on "cpu" and on "cuda": "compiled" or "reference"."""
    return {
        name: {device: "compiled" if device in COMPILED[name] else "reference" for device in ("cpu", "cuda")}
        for name in OPERATORS
    }


def build_info() -> dict[str, Any]:
    """Report what was built, what runs, and why not more.

    Returns a dict: ``version``; ``extension`` (bool) and, where False, ``reason``; ``torch`` (running) and
    ``torch_built`` (built against, None without the extension); ``cuda`` (toolkit version, or None) with
    ``cuda_reason`` why not; ``archs`` (list of CUDA architectures); ``simd`` ("AVX-512", "AVX2" or
    "baseline", chosen at run time); ``operators``, see :func:`udas_fast.ops.backends`.
    """
    info: dict[str, Any] = {
        "version": __version__,
        "extension": not REASON,
        "reason": REASON or None,
        "torch": torch.__version__,
        "torch_built": None,
        "cuda": None,
        "cuda_reason": REASON or None,
        "archs": [],
        "simd": None,
        "operators": backends(),
    }
    if info["extension"]:
        import udas_fast._C as built

        found = built.build_info()
        info |= {key: found[key] for key in ("torch_built", "cuda", "simd")}
        info["cuda_reason"] = found["cuda_reason"] or None
        info["archs"] = [arch for arch in found["archs"].split(";") if arch]
    return info


def compiled(name: str, tensor: Tensor) -> bool:
    """Return whether operator ``name`` is compiled for the device of ``tensor``."""
    return tensor.device.type in COMPILED[name]


def call(name: str, *args: Any) -> Any:
    """Call the compiled operator; a value that it refuses (a label out of range) is an InputError."""
    operator = getattr(torch.ops.udas_fast, name).default
    if torch.compiler.is_compiling():
        return operator(*args)
    try:
        return operator(*args)
    except RuntimeError as error:
        sentence = re.sub(r"^.*?\.(h|cpp|cu):\d+, ", "", str(error).splitlines()[0])
        if ": found " in sentence:
            raise InputError(sentence) from None
        raise


def register_fake(name: str, function: Callable[..., Any]) -> None:
    """Register the shapes of operator ``name``, where it exists."""
    if not REASON:
        torch.library.register_fake(f"udas_fast::{name}", function)
