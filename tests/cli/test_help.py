"""Help, version and completion: complete, quick, and readable at any width."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from udas_fast import __version__, cli
from udas_fast.cli.options import KINDS
from udas_fast.data import KINDS as DATASET_KINDS

RunCli = Callable[..., tuple[int, str, str]]
GROUP = typer.main.get_command(cli.app)


def _commands(group: Any = GROUP, *names: str) -> Iterator[tuple[str, ...]]:
    """The words that name each command, groups included."""
    for name, command in group.commands.items():
        yield (*names, name)
        if hasattr(command, "commands"):
            yield from _commands(command, *names, name)


def test_letters_that_a_terminal_does_not_have_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.argv", ["udas-fast", "recipes"])  # GTA5 → Cityscapes
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    terminal.flush()
    assert b"GTA5 ? Cityscapes" in terminal.buffer.getvalue()


def test_every_kind_of_dataset_is_listed(run_cli: RunCli) -> None:
    code, stdout, _ = run_cli("kinds")
    assert code == 0
    assert tuple(line.split()[0] for line in stdout.splitlines()) == DATASET_KINDS


def test_every_command_and_option_has_a_help_text() -> None:
    for name, command in GROUP.commands.items():
        first = command.help.split("\n\n")[0]
        assert len(first) <= 58, f"{name}: the list of commands cuts {first!r}"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
    words = " ".join(GROUP.commands["train"].help.split())
    assert KINDS in words


@pytest.mark.parametrize("words", [(), *_commands()], ids=" ".join)
def test_h_is_help(words: tuple[str, ...], run_cli: RunCli) -> None:
    code, stdout, stderr = run_cli(*words, "-h")
    assert (code, stderr) == (0, "")
    assert stdout == run_cli(*words, "--help")[1]
    assert "-h, --help" in stdout


def test_version(run_cli: RunCli) -> None:
    assert run_cli("--version") == (0, f"udas-fast {__version__}\n", "")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("words", [(), *_commands()], ids=" ".join)
def test_help_fits_the_terminal(
    width: int, words: tuple[str, ...], run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run_cli(*words, "-h")[1].splitlines()
    assert max(map(len, lines)) <= width
    assert words or not any(line.endswith("...") for line in lines[1:]), "a text is cut"


def _sections(text: str) -> dict[str, str]:
    """The lines of each section of a help text by its title."""
    found: dict[str, str] = {}
    title = ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            title = line.rstrip(":")
        found[title] = found.get(title, "") + line + "\n"
    return found


def test_commands_stand_in_sections(run_cli: RunCli) -> None:
    sections = _sections(run_cli("--help")[1])
    for title, commands in cli.COMMANDS.items():
        for command in commands:
            assert f"  {command.__name__.replace('_', '-')} " in sections[title]
    listed = [line.split()[0] for title in cli.COMMANDS for line in sections[title].splitlines()[1:] if line]
    assert sorted(listed) == sorted(GROUP.commands)


def test_options_of_train_stand_in_sections(run_cli: RunCli) -> None:
    sections = _sections(run_cli("train", "--help")[1])
    assert list(sections)[1:] == ["Arguments", "Data", "Recipe", "Run", "Options"]
    for title, options in {
        "Data": ("--source", "--num-labels", "--workers"),
        "Recipe": ("--size", "--steps", "--batch-size", "--lr", "--set"),
        "Run": ("-o, --out", "--seed", "--log-every", "--resume"),
    }.items():
        for option in options:
            assert f"  {option} " in sections[title]


def test_help_and_version_import_no_torch() -> None:
    for words in (["--help"], ["--version"], ["train", "-h"]):
        program = (
            "import sys; from udas_fast import cli\n"
            f"sys.argv = ['udas-fast', *{words}]\n"
            "try: cli.main()\n"
            "except SystemExit: pass\n"
            "assert 'udas_fast.cli.train' in sys.modules and 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_recipes_import_nothing_slow_beside_torch() -> None:
    program = (
        "import sys; from udas_fast import cli\n"
        "sys.argv = ['udas-fast', 'recipes']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "slow = {'matplotlib', 'tensorboard', 'nvidia.dali', 'transformers', 'onnx', 'udas_fast.training'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_the_shell_completes_commands_and_options() -> None:
    def complete(line: str) -> str:
        """What bash is offered for the last word of ``line``."""
        words = line.split(" ")
        variables = {
            "_UDAS_FAST_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        program = "import sys; from udas_fast import cli; sys.argv[0] = 'udas-fast'; cli.main()"
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | variables, capture_output=True, text=True
        )
        return done.stdout

    assert complete("udas-fast tra").split() == ["train", "translate"]
    assert "--batch-size" in complete("udas-fast train --ba")


def test_completion_can_be_installed(run_cli: RunCli) -> None:
    stdout = run_cli("--help")[1]
    assert "--install-completion" in stdout
    assert "--show-completion" in stdout
