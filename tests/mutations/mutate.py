"""Mutations of plain data and of bytes, a pure function of a seeded generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

ZOO: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, -(2**31), 2**31, 2**70, 0.0, -0.5, 1.5, 1e-9, 1e300,
    float("inf"), float("-inf"), float("nan"), "", "none", "sgd", "1e-3", "0", "../x", "/etc/passwd", "a\0b",
    "é" * 40, "x" * 3000, [], {}, [1], [1, 2], [0, 0], [-1, 5], [1.0, "a"], [[]], {"a": 1}, {"kind": "udas"},
    {"kind": "supervised"}, b"\xff",
)  # fmt: skip


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything below ``node``."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutate_tree(rng: random.Random, tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` (dicts, lists, plain values) with one to three things changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(tree))
        if not found:
            break
        *above, key = rng.choice(found)
        node: Any = tree
        for step in above:
            node = node[step]
        rng.choice(_TREE)(rng, node, key)
    return tree


def _replace(rng: random.Random, node: Any, key: Any) -> None:
    node[key] = copy.deepcopy(rng.choice(ZOO))


def _delete(rng: random.Random, node: Any, key: Any) -> None:
    del node[key]


def _rename(rng: random.Random, node: Any, key: Any) -> None:
    if isinstance(node, dict):
        node[rng.choice([f"{key}x", str(key)[:-1], str(key).upper(), 3, None])] = node.pop(key)


def _double(rng: random.Random, node: Any, key: Any) -> None:
    if isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))


def _scale(rng: random.Random, node: Any, key: Any) -> None:
    if isinstance(node[key], (int, float)):
        node[key] = node[key] * rng.choice([-1, 0, 0.5, 10, 1e6, 1e30])


def _wrap(rng: random.Random, node: Any, key: Any) -> None:
    node[key] = rng.choice([[node[key]], {"value": node[key]}, str(node[key])])


_TREE: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    _replace, _replace, _replace, _delete, _rename, _double, _scale, _wrap,
)  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """``data`` with bits flipped, parts cut, doubled, moved or overwritten, or cut short."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not out:
            break
        place = rng.randrange(len(out)) if rng.random() < 0.6 else rng.randrange(min(len(out), 64))
        length = rng.choice([1, 2, 4, 16, 200])
        kind = rng.randrange(6)
        if kind == 0:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[place : place + length]
        elif kind == 2:
            out[place:place] = out[place : place + length]
        elif kind == 3:
            out[place : place + length] = rng.randbytes(min(length, len(out) - place))
        elif kind == 4:
            out[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        else:
            del out[place:]
    return bytes(out)
