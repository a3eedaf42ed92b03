"""What of the compiled operators is here. Imports no torch until it is asked."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

__version__ = "0.1.0"

BUILD_HINT = "build them with `pip install --no-build-isolation .` where torch and a C++ compiler are"


def warn_where_missing() -> None:
    """One line where the extension was never built: everything works, but as plain PyTorch."""
    if importlib.util.find_spec("udas_fast._C") is None:
        warnings.warn(
            "udas_fast: the compiled operators are not built; plain PyTorch runs instead, slower and with "
            f"much more memory ({BUILD_HINT})",
            RuntimeWarning,
            stacklevel=3,
        )


def build_info() -> dict[str, Any]:
    """What was built, what runs, and why not more.

    Returns a dict: ``version``; ``extension`` (bool) and, where False, ``reason``; ``torch`` (running) and
    ``torch_built`` (built against, None without the extension); ``cuda`` (toolkit version, or None) with
    ``cuda_reason`` why not; ``archs`` (list of CUDA architectures); ``simd`` ("AVX-512", "AVX2" or
    "baseline", chosen at run time); ``operators``, see :func:`udas_fast.ops.backends`.
    """
    import torch

    from udas_fast.ops import _library

    info: dict[str, Any] = {
        "version": __version__,
        "extension": not _library.REASON,
        "reason": _library.REASON or None,
        "torch": torch.__version__,
        "torch_built": None,
        "cuda": None,
        "cuda_reason": _library.REASON or None,
        "archs": [],
        "simd": None,
        "operators": _library.backends(),
    }
    if info["extension"]:
        import udas_fast._C as built

        found = built.build_info()
        info |= {key: found[key] for key in ("torch_built", "cuda", "simd")}
        info["cuda_reason"] = found["cuda_reason"] or None
        info["archs"] = [arch for arch in found["archs"].split(";") if arch]
    return info
