"""Files that turn bad while a run is under way: named, skipped and counted, up to a limit."""

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
    """More files have turned bad during training than the user allows."""


@dataclass
class BadFiles:
    """The bad files of a run: at most ``limit`` are skipped; ``found`` has a sentence for each."""

    limit: int = 0
    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise bad("limit of bad files", self.limit, "0 or more")

    def add(self, sentences: Iterable[str]) -> None:
        """Count the files that are not counted yet and say so; raise BadFile where they are too many."""
        for sentence in sentences:
            if self._count(sentence):
                tqdm.write(f"skipped {len(self.found)} of {self.limit}: {sentence}", file=sys.stderr)

    def _count(self, sentence: str) -> bool:
        """Whether it is a file that was not counted yet."""
        if sentence in self.found:
            return False
        if len(self.found) >= self.limit:
            raise BadFile(f"{sentence}; bad files that may be skipped: {self.limit}")
        self.found.append(sentence)
        return True

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Around a step's reading: what one process finds all count, so that all go on or none (collective).

        Raises:
            BadFile: in every process, where one has raised it or all of them have found too many.
        """
        before, mine = len(self.found), None
        try:
            yield
        except BadFile as error:
            mine = error
        new = self.found[before:]
        if not any(distributed.all_reduce_any([bool(new) or mine is not None])):
            return
        del self.found[before:]
        for sentences, error in distributed.all_gather_object((new, mine)):
            for sentence in sentences:
                self._count(sentence)
            if error is not None:
                raise error


def read_or_replace(
    read: Callable[[int], T], index: int, length: int, limit: int
) -> tuple[T | None, list[str]]:
    """``read(index)``, or where that raises InputError the next readable one after it, and what was raised.

    At most ``limit`` replacements are tried; None where none could be read.
    """
    faults: list[str] = []
    for attempt in range(min(limit + 1, length)):
        try:
            return read((index + attempt) % length), faults
        except InputError as error:
            faults.append(str(error))
    return None, faults
