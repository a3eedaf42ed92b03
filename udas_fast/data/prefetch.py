"""Batches go to the GPU while the step before is still running."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from udas_fast.data.types import Batch

Loaded = tuple[Batch | None, list[str]]
"""A batch, None where no image could be read for it, and a sentence for each file that turned out bad."""

DEPTH = 2  # batches on the device beside the one in use


def prefetch(batches: Iterator[Loaded], device: torch.device) -> Iterator[Loaded]:
    """``batches`` on ``device``; on a GPU read ahead by a thread that copies on a stream of its own.

    What the thread raises is raised at the batch that it came instead of.
    """
    return batches if device.type != "cuda" else _on_gpu(batches, device)


def _on_gpu(batches: Iterator[Loaded], device: torch.device) -> Iterator[Loaded]:
    ready: queue.Queue[tuple[Loaded, torch.cuda.Event] | BaseException] = queue.Queue(DEPTH)
    stop = threading.Event()
    thread = threading.Thread(target=_copy, args=(batches, device, ready, stop), daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            (batch, faults), copied = item
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in batch.tensors() if batch is not None else ():
                tensor.record_stream(current)  # or its memory would be given to the next copy too early
            yield batch, faults
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for a place in the queue
            while not ready.empty():
                ready.get_nowait()
            thread.join(0.01)


def _copy(batches: Iterator[Loaded], device: torch.device, ready: queue.Queue, stop: threading.Event) -> None:
    try:
        stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            for batch, faults in batches:
                moved = None if batch is None else batch.to(device)
                copied = torch.cuda.Event()
                copied.record(stream)
                ready.put(((moved, faults), copied))
                if stop.is_set():
                    return
    except BaseException as error:
        ready.put(error)
