"""Interruption: Ctrl-C and SIGTERM end a run at the next step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop and has written a checkpoint."""


class StopSignal:
    """Context in which SIGINT and SIGTERM set :attr:`requested`; a second signal acts as usual.

    Under torchrun a second one is ignored as well: Ctrl-C comes from the terminal and again from torchrun, which kills
    processes that have not ended after half a minute.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
