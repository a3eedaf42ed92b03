"""The command line, ``udas-fast COMMAND``: one function a command, in a file for what the commands are for.

Commands import what they need when they run, so that help and version are quick.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from udas_fast import __version__
from udas_fast.cli import data, evaluate, rank, runs, studies, train
from udas_fast.cli.help import SectionedCommand, SectionedGroup
from udas_fast.errors import InputError, bad

INTERRUPTED = 130  # the shell's code for a run ended by Ctrl-C
SHARED = ("train", "translate", "evaluate")  # what the processes of torchrun do together
#: The commands in the sections of the help.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Training": (train.train, train.plan, train.translate),
    "Trained models": (evaluate.evaluate, runs.predict, rank.rank, runs.export),
    "Runs": (runs.watch, runs.report, runs.compare, runs.card),
    "Studies of many runs": (studies.study, studies.demo),
    "Data and installation": (data.check_data, data.kinds, studies.doctor),
}
SECTIONED = (train.train, train.plan, train.translate, studies.study)

app = typer.Typer(
    cls=SectionedGroup,
    help="Train semantic segmentation across domains: labelled synthetic images, unlabelled real ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"udas-fast {__version__}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Refuse to start a command under torchrun that every process would run whole, into one folder."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or context.invoked_subcommand in SHARED:
        return
    from udas_fast.distributed import launched_processes  # late: torch takes a second to import

    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        raise typer.Exit  # without a failure, for which torchrun would end the main process before it has said why
    expected = (
        f"one: start it without torchrun, as only {', '.join(SHARED[:-1])} and {SHARED[-1]} share their work"
    )
    raise bad(str(context.invoked_subcommand), f"{launched_processes()} processes (WORLD_SIZE)", expected)


for _section, _commands in COMMANDS.items():
    for _command in _commands:
        _class = SectionedCommand if _command in SECTIONED else None
        app.command(cls=_class, rich_help_panel=_section)(_command)
_recipes = typer.Typer(invoke_without_command=True, rich_markup_mode=None, callback=studies.recipes)
_recipes.command("show")(studies.show_recipe)
app.add_typer(_recipes, name="recipes", rich_help_panel="Data and installation")


def main() -> None:
    """Run the command line: an :class:`InputError` becomes one sentence and exit code 2, an interruption 130.

    Among several processes the sentence is that of the one that stopped first, and it is printed once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "–" or a name's letters ends no run
    try:
        with warnings.catch_warnings():
            _show_own_warnings_only()
            app(standalone_mode=True)
    except InputError as error:
        _print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        from udas_fast.distributed import ProcessLost
        from udas_fast.engine.interrupt import Interrupted

        if not isinstance(error, (Interrupted, ProcessLost)):
            raise
        _print_error(error)
        asked = isinstance(error, Interrupted) or error.interrupted
        sys.exit(INTERRUPTED if asked else 1)


def _show_own_warnings_only() -> None:
    """Show warnings of this package as a sentence, and those of libraries only where Python is asked for them (-W)."""
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", message="udas_fast")
    warnings.showwarning = lambda message, *_: print(f"udas-fast: {message}", file=sys.stderr)


def _print_error(error: Exception) -> None:
    from udas_fast.distributed import stopped_first

    if stopped_first(error):
        print(f"udas-fast: {error}", file=sys.stderr)
