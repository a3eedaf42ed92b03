"""Copies of batches to the GPU while the previous step is still running."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from udas_fast.data.types import LoadResult

DEPTH = 2  # batches on the device beside the one in use


def prefetch(batches: Iterator[LoadResult], device: torch.device) -> Iterator[LoadResult]:
    """Yield ``batches`` on ``device``; for a GPU a thread reads ahead and copies on a stream of its own.

    An exception in the thread is raised in place of the batch that it prevented.
    """
    return batches if device.type != "cuda" else _on_gpu(batches, device)


def _on_gpu(batches: Iterator[LoadResult], device: torch.device) -> Iterator[LoadResult]:
    ready: queue.Queue[tuple[LoadResult, torch.cuda.Event] | BaseException] = queue.Queue(DEPTH)
    stop = threading.Event()
    thread = threading.Thread(target=_copy, args=(batches, device, ready, stop), daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            (batch, messages), copied = item
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in batch.tensors() if batch is not None else ():
                tensor.record_stream(current)  # otherwise the next copy could reuse its memory too early
            yield batch, messages
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for a place in the queue
            while not ready.empty():
                ready.get_nowait()
            thread.join(0.01)


def _copy(
    batches: Iterator[LoadResult], device: torch.device, ready: queue.Queue, stop: threading.Event
) -> None:
    try:
        stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            for batch, messages in batches:
                moved = None if batch is None else batch.to(device)
                copied = torch.cuda.Event()
                copied.record(stream)
                ready.put(((moved, messages), copied))
                if stop.is_set():
                    return
    except BaseException as error:
        ready.put(error)
