"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal

import pytest

from udas_fast.engine.interrupt import StopSignal


def test_a_second_signal_acts_as_usual() -> None:
    # Tests that a shell started in the background have inherited an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_under_torchrun_which_repeats_it_nothing_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) == before
