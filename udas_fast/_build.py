"""Version of the package, and a warning where the compiled operators were never built; imports no torch."""

from __future__ import annotations

import importlib.util
import warnings

__version__ = "0.1.0"

BUILD_HINT = "build them with `pip install --no-build-isolation .` where torch and a C++ compiler are"


def warn_where_missing() -> None:
    """Warn in one line where the extension was never built: everything works, but as plain PyTorch."""
    if importlib.util.find_spec("udas_fast._C") is None:
        warnings.warn(
            "udas_fast: the compiled operators are not built; plain PyTorch runs instead, slower and with "
            f"much more memory ({BUILD_HINT})",
            RuntimeWarning,
            stacklevel=3,
        )
