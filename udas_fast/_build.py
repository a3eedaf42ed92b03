"""Version of the package, and whether it has compiled operators, without importing torch."""

from __future__ import annotations

import warnings
from pathlib import Path

__version__ = "0.1.0"  # pyproject.toml reads it from here
LIBRARY = Path(__file__).with_name("_ops.so")
"""The compiled operators, where they are built."""
ENTRY_POINTS = "udas_fast.methods"
"""The group of entry points of other packages: each names a module with objectives and recipes."""
BUILD_HINT = "run `pip install .` in a checkout of udas_fast, where a C++ compiler is, to build them"


def warn_where_missing() -> None:
    """Warn in one line where the extension was never built: everything works, but as plain PyTorch."""
    if not LIBRARY.exists():
        warnings.warn(
            "udas_fast: the compiled operators are not built; plain PyTorch runs instead, slower and with "
            f"much more memory ({BUILD_HINT})",
            RuntimeWarning,
            stacklevel=3,
        )
