"""Count of the memory that tensors take while a computation runs, real tensors or fake ones."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes: the CUDA caching allocator rounds every request up to a multiple


class MemoryTracker(TorchDispatchMode):
    """Counter of live storages, made by operations while it is active or named by :meth:`hold`.

    A storage is counted once, whatever views of it there are, from the operation that made it until it is freed.
    ``peak`` is the largest sum, ``peak_by_kind`` its parts: bytes by the kind that was current when a storage was made
    (:meth:`making`), or that :meth:`hold` gave it later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.peak_by_kind: Mapping[str, int] = {}
        self._kind = "temporary"
        self._live: Counter[str] = Counter()
        self._storages: dict[int, tuple[weakref.ref, int, str]] = {}

    @property
    def live(self) -> int:
        """Bytes in use now."""
        return self._live.total()

    def reset_peak(self) -> None:
        """Forget the largest sum so far; live storages stay counted."""
        self.peak, self.peak_by_kind = self.live, dict(self._live)

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Count storages made inside as of ``kind``."""
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._kind = before

    def hold(self, kind: str, tensors: Iterable[Tensor | None]) -> None:
        """Count the storages of ``tensors`` as of ``kind`` from now on."""
        for tensor in tensors:
            if tensor is not None:
                self._drop(id(tensor.untyped_storage()))
                self._count(tensor, kind)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf, self._kind)
        return result

    def _count(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._storages[key] = weakref.ref(storage, lambda _: self._drop(key)), size, kind
        self._live[kind] += size
        if self.live > self.peak:
            self.reset_peak()

    def _drop(self, key: int) -> None:
        _, size, kind = self._storages.pop(key, (None, 0, self._kind))
        self._live[kind] -= size
