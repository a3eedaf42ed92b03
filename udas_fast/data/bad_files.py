"""Files that become unreadable during a run: they are reported, skipped and counted, up to a limit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

from udas_fast import distributed
from udas_fast.errors import InputError, bad

T = TypeVar("T")


class BadFile(InputError):
    """More files became unreadable during training than the user allows."""


class LoaderStopped(BadFile):
    """The processes that read files have ended; the message says what helps."""


@dataclass
class BadFiles:
    """The bad files of a run: at most ``limit`` are skipped; ``found`` holds a message for each."""

    limit: int = 0
    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise bad("limit of bad files", self.limit, "0 or more")

    def add(self, messages: Iterable[str]) -> None:
        """Count and report the files that are not counted yet; raise BadFile where they are too many."""
        for message in messages:
            if self._count(message):
                tqdm.write(f"skipped {len(self.found)} of {self.limit}: {message}", file=sys.stderr)

    def _count(self, message: str) -> bool:
        """Count a file; return False if it was counted before."""
        if message in self.found:
            return False
        if len(self.found) >= self.limit:
            raise BadFile(f"{message}; bad files that may be skipped: {self.limit}")
        self.found.append(message)
        return True

    @contextmanager
    def synchronized(self) -> Iterator[None]:
        """Count in every process the files that any process finds inside the context (collective).

        So all processes continue, or none does.

        Raises:
            BadFile: in every process, where one has raised it or all of them have found too many.
        """
        before = len(self.found)
        own_error: BadFile | None = None
        try:
            yield
        except BadFile as error:
            own_error = error
        new = self.found[before:]
        if not any(distributed.all_reduce_any([bool(new) or own_error is not None])):
            return
        del self.found[before:]
        for messages, raised in distributed.all_gather_object((new, own_error)):
            for message in messages:
                self._count(message)
            if raised is not None:
                raise raised


def read_or_replace(
    read: Callable[[int], T], index: int, length: int, limit: int
) -> tuple[T | None, list[str]]:
    """Return ``read(index)`` and no messages; where it raises InputError, the next readable one and the messages.

    At most ``limit`` replacements are tried; the result is None if none could be read.
    """
    messages: list[str] = []
    for attempt in range(min(limit + 1, length)):
        try:
            return read((index + attempt) % length), messages
        except InputError as error:
            messages.append(str(error))
    return None, messages
