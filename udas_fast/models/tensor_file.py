"""Files of safetensors: tensors by name and a header of text, in which nothing can hide that runs."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from udas_fast.errors import bad

SUFFIX = ".safetensors"


def read_tensors(thing: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, on the CPU; the header's metadata) of the file at ``path``.

    Raises:
        InputError: no such file, or one that is damaged or another; it begins with ``thing`` and the path.
    """
    expected = f"a {SUFFIX} file"
    if not path.is_file():
        raise bad(f"{thing} {path}", "no such file", expected)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise bad(f"{thing} {path}", f"unreadable data ({str(error).splitlines()[0]})", expected) from error
