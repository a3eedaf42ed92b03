"""Help texts in sections: commands and options by what they are for, in plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

from udas_fast.cli.options import DATA, RECIPE, RUN

Row = tuple[str, str]
ORDER = ("Arguments", DATA, RECIPE, RUN, "Options")  # of a command's sections
LONGEST_NAME = 30  # in columns; a longer one has its help on the next line


class SectionedGroup(TyperGroup):
    """A group of commands whose help lists each command in the section of its ``rich_help_panel``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order of its first command."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        limit = formatter.width - 6 - max(len(name) for name, _ in commands)
        rows = [
            (_section(command, "Commands"), (name, command.get_short_help_str(limit)))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        _write_sections(formatter, rows)


class SectionedCommand(TyperCommand):
    """A command whose help lists each option in the section of its ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections in their order; options without a panel come last."""
        rows = []
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                other = "Arguments" if parameter.param_type_name == "argument" else "Options"
                rows.append((_section(parameter, other), record))
        _write_sections(formatter, sorted(rows, key=lambda row: ORDER.index(row[0])))


def _section(part: object, other: str) -> str:
    return getattr(part, "rich_help_panel", None) or other


def _write_sections(formatter: Any, rows: Iterable[tuple[str, Row]]) -> None:
    """Write the rows of each section under its title, with the help texts of all sections in one column."""
    sections: dict[str, list[Row]] = {}
    for title, row in rows:
        sections.setdefault(title, []).append(row)
    names = [len(name) for records in sections.values() for name, _ in records]
    column = max((length for length in names if length <= LONGEST_NAME), default=0)
    for title, records in sections.items():
        with formatter.section(title):
            formatter.write_dl([(name.ljust(column), text) for name, text in records], col_max=LONGEST_NAME)
