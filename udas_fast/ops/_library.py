"""The compiled extension: loading it, registering its operators, calling them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udas_fast._build import BUILD_HINT, LIBRARY, __version__
from udas_fast.errors import InputError, bad

OLDEST_TORCH = (2, 11)


def _load() -> str:
    """Load the extension, which gives the operators to torch; return '' or the reason why that failed."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        return f"torch is {torch.__version__}, the compiled operators need 2.11 or later"
    if not LIBRARY.exists():
        return "the extension was not built"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the extension does not load: {error.__cause__ or error}"  # the cause is the loader's own message
    return ""


def _has_kernel(name: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"udas_fast::{name}", device.upper())


REASON = _load()
"""Why there are no compiled operators, or ''."""
COMPILED: dict[str, frozenset[str]] = {}
"""The devices ("cpu", "cuda") for which each operator is compiled. The operators' modules register them."""
ARGUMENTS: dict[str, tuple[str, ...]] = {}
"""The names of each compiled operator's arguments, in the order of its schema."""

if REASON and "not built" not in REASON:
    warnings.warn(f"udas_fast: {REASON}; plain PyTorch runs instead", RuntimeWarning, stacklevel=2)
elif not REASON and torch.cuda.device_count() > 0 and not _has_kernel("cross_entropy", "cuda"):
    warnings.warn(
        f"udas_fast: there is a GPU but no compiled CUDA operator; plain PyTorch runs there ({BUILD_HINT})",
        RuntimeWarning,
        stacklevel=2,
    )


def register(name: str, fake: Callable[..., Any]) -> None:
    """Register operator ``name`` and, where it is compiled, the function that gives its results' shapes."""
    devices = ("cpu", "cuda")
    COMPILED[name] = frozenset(device for device in devices if not REASON and _has_kernel(name, device))
    if not REASON:
        ARGUMENTS[name] = tuple(argument.name for argument in schema(name).arguments)
        register_fake(name, fake)


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Register the function that gives the shapes of the results of operator ``name``, for fake and meta tensors."""

    def shapes(*args: Any) -> Any:
        # torch comes here for any meta tensor; results of the device of another one would be made and never filled.
        tensors = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else [arg])]
        devices = sorted({t.device.type for t in tensors if isinstance(t, Tensor)})
        if "meta" in devices and len(devices) > 1:
            raise bad(f"tensors of {name}", f"devices {' and '.join(devices)}", "one device")
        return fake(*args)

    torch.library.register_fake(f"udas_fast::{name}", shapes)


def schema(name: str) -> torch.FunctionSchema:
    """Return the schema of compiled operator ``name``."""
    return overload(name)._schema


def overload(name: str) -> torch._ops.OpOverload:
    """Return compiled operator ``name`` of torch."""
    return getattr(torch.ops.udas_fast, name).default


def backends() -> dict[str, dict[str, str]]:
    """Return for each operator which form runs on "cpu" and on "cuda": "compiled" or "reference"."""
    return {
        name: {device: "compiled" if device in devices else "reference" for device in ("cpu", "cuda")}
        for name, devices in COMPILED.items()
    }


def build_info() -> dict[str, Any]:
    """Report what was built, what runs, and why there is no more.

    Returns:
        A dict: ``version``; ``extension`` (bool) and, if False, ``reason``; ``torch`` (running); ``cuda`` (toolkit
        version, or None) and, if None, ``cuda_reason``; ``archs`` (list of CUDA architectures); ``simd`` ("AVX-512",
        "AVX2" or "baseline", chosen at run time); ``operators``, see :func:`udas_fast.ops.backends`.
    """
    info: dict[str, Any] = {
        "version": __version__,
        "extension": not REASON,
        "reason": REASON or None,
        "torch": torch.__version__,
        "cuda": None,
        "cuda_reason": REASON or None,
        "archs": [],
        "simd": None,
        "operators": backends(),
    }
    if info["extension"]:
        cuda, reason, archs, _, simd = torch.ops.udas_fast.build_info().split("\n")
        info |= {"cuda": cuda or None, "cuda_reason": reason or None, "simd": simd}
        info["archs"] = [arch for arch in archs.split(";") if arch]
    return info


def is_compiled(name: str, tensor: Tensor) -> bool:
    """Return whether operator ``name`` is compiled for the device of ``tensor``."""
    return tensor.device.type in COMPILED[name]


def call(name: str, *args: Any) -> Any:
    """Call compiled operator ``name``; values that it refuses (a label out of range) are an InputError."""
    operator = overload(name)
    if torch.compiler.is_compiling():
        return operator(*args)
    try:
        return operator(*args)
    except RuntimeError as error:
        sentence = re.sub(r"^.*?\.(h|cpp|cu):\d+, ", "", str(error).splitlines()[0])
        if ": found " in sentence:
            raise InputError(sentence) from None
        raise
