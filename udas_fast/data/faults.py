"""Files that turn bad while a run is under way: named, skipped and counted, up to a limit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

from udas_fast.errors import InputError, bad

T = TypeVar("T")


class BadFile(InputError):
    """More files have turned bad during training than the user allows."""


@dataclass
class Faults:
    """The bad files of a run: at most ``limit`` are skipped; ``found`` has a sentence for each."""

    limit: int = 0
    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise bad("limit of bad files", self.limit, "0 or more")

    def add(self, sentences: Iterable[str]) -> None:
        """Count the files that are not counted yet and say so; raise BadFile where they are too many."""
        for sentence in sentences:
            if sentence in self.found:
                continue
            if len(self.found) >= self.limit:
                raise BadFile(f"{sentence}; bad files that may be skipped: {self.limit}")
            self.found.append(sentence)
            tqdm.write(f"skipped {len(self.found)} of {self.limit}: {sentence}", file=sys.stderr)


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
