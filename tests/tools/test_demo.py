"""The demo's table of conclusions says what its scores show."""

from __future__ import annotations

from udas_fast.tools.demo import ENTRIES, conclusions


def test_conclusions_are_the_differences_of_the_rows() -> None:
    names = [entry.name for entry in ENTRIES]
    text = conclusions(dict(zip(names, (0.21, 0.31, 0.35, 0.4), strict=True)))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:5]]
    assert [row[1:] for row in rows] == [
        ["+10.0", names[1], names[0]],
        ["-5.0", names[2], names[3]],
        ["+4.0", names[2], names[1]],
    ]
    assert "two points" in text
