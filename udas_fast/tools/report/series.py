"""Series of any length, kept as a bounded number of means."""

from __future__ import annotations

POINTS = 240  # about what a chart of a phone's or a column's width can show


class Series:
    """Values by step, read once: means over spans of ``span`` steps, at most :data:`POINTS` of them.

    ``first`` and ``last`` are the steps at its ends, ``count`` the number of values, ``total`` their sum.
    """

    def __init__(self) -> None:
        self.span = 1
        self.first, self.last = 0, 0
        self._cells: dict[
            int, tuple[int, int, float]
        ] = {}  # by step // span: count, sum of steps, sum of values

    def add(self, step: int, value: float) -> None:
        """Take in the value of ``step``; the span doubles whenever there are too many points."""
        self.first, self.last = (min(self.first, step), max(self.last, step)) if self._cells else (step, step)
        count, steps, total = self._cells.get(step // self.span, (0, 0, 0.0))
        self._cells[step // self.span] = (count + 1, steps + step, total + value)
        while len(self._cells) > POINTS:
            self._double()

    def coarsen(self, span: int) -> None:
        """Widen the span to at least ``span``, so that series drawn side by side are equally smooth."""
        while self.span < span:
            self._double()

    def _double(self) -> None:
        self.span *= 2
        cells, self._cells = self._cells, {}
        for index, cell in cells.items():
            before = self._cells.get(index // 2, (0, 0, 0.0))
            self._cells[index // 2] = tuple(a + b for a, b in zip(before, cell, strict=True))

    @property
    def points(self) -> list[tuple[float, float]]:
        """(mean step, mean value) of each span, in the order of steps."""
        cells = sorted(self._cells.items())
        return [(steps / count, total / count) for _, (count, steps, total) in cells]

    @property
    def count(self) -> int:
        return sum(count for count, _, _ in self._cells.values())

    @property
    def total(self) -> float:
        return sum(total for _, _, total in self._cells.values())
