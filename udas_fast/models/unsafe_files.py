"""Torch files that hold more than tensors: what is in them, read without running it, and how to convert them."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

MOST_BYTES = 2**26  # of a pickle, which holds no tensors; more of a file is not looked at
LEGACY_PICKLES = 4  # a file of torch before 1.6: magic number, version, system, content
PLAIN = ("torch", "collections", "_codecs")  # packages of a state dict; but a torch.nn module is none


def describe_unsafe(path: Path) -> tuple[list[str], str]:
    """Return the objects in a file that a safe load refuses, and the lines of Python that convert it.

    The objects are named as in the file, in its order; none are found in a damaged file. Nothing of the file is run.
    """
    classes: list[str] = []
    strings: set[str] = set()
    # pickletools raises about anything for a damaged file; what was read before counts
    with suppress(Exception), path.open("rb") as file:
        for pickle in _pickles(file):
            for name, text in _scan(pickle):
                if name is not None and name not in classes and _is_unsafe(name):
                    classes.append(name)
                if text is not None:
                    strings.add(text)
    return classes, _conversion(path, strings)


def _pickles(file: IO[bytes]) -> Iterator[bytes | IO[bytes]]:
    """Yield what is pickled in a torch file: one stream of a zip file, several one after another of an older file."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as member:
                yield member.read(MOST_BYTES)
        return
    file.seek(0)
    for _ in range(LEGACY_PICKLES):
        yield file


def _scan(pickle: bytes | IO[bytes]) -> Iterator[tuple[str | None, str | None]]:
    """Yield (``module.name`` of an object, None) or (None, a string) for each of them in a pickle."""
    last: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", "."), None
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(last[-2:]), None
        elif isinstance(argument, str):
            last = [*last[-1:], argument]
            yield None, argument


def _is_unsafe(name: str) -> bool:
    return not name.startswith(tuple(f"{package}." for package in PLAIN)) or name.startswith(
        "torch.nn.modules."
    )


def _conversion(path: Path, strings: set[str]) -> str:
    """Return three lines that write the tensors of ``path`` to a file of its own."""
    content = "content"
    if key := next((key for key in ("state_dict", "model") if key in strings), None):
        content += f"[{key!r}]"
    if "_modules" in strings and "state_dict" not in strings:  # a whole network
        content += ".state_dict()"
    safe = str(path.with_name(f"{path.stem}-safe.pth"))
    return (
        "    import torch\n"
        f"    content = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
        f"    torch.save({{k: v for k, v in {content}.items() if torch.is_tensor(v)}}, {safe!r})"
    )
