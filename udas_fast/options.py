"""What several commands of the command line take: options by the name of their type, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from udas_fast.errors import bad

KINDS = "cityscapes, gta5, synthia, camvid, camvid-day, camvid-dusk, folder, streets, translated"
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Engine = Annotated[str, typer.Option(help="data engine: torch, dali, or auto")]
Every = Annotated[int, typer.Option(min=1, help="steps between checkpoints")]
Json = Annotated[Path | None, typer.Option("--json", help="write the figures here too")]
Labels = Annotated[int, typer.Option(min=0, help="labelled target images that may be used")]
Model = Annotated[Path, typer.Argument(help="a run's folder or a model.safetensors")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="a recipe in YAML")]
RecipeName = Annotated[str | None, typer.Argument(help="a name that `udas-fast recipes` lists")]
Resume = Annotated[Path | None, typer.Option(help="go on with the run in this folder, as its run.yaml says")]
RunFolder = Annotated[Path | None, typer.Option(help="folder of the run")]
Seed = Annotated[int, typer.Option(min=0, help="all random numbers follow from it")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="a number of the recipe; may be given again"),
]
Small = Annotated[
    str | None, typer.Option(metavar="HEIGHTxWIDTH", help="for CPUs: a small network, images of this size")
]
Weights = Annotated[str | None, typer.Option(help="torchvision ResNet or AdaptSegNet checkpoint")]


def parse_size(text: str, option: str = "--small") -> tuple[int, int]:
    """``"180x240"`` as (height, width)."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise bad(option, repr(text), "HEIGHTxWIDTH, for example 180x240")
    return int(height), int(width)


def numbers(option: str, text: str, least: int = 0) -> list[int]:
    """``"100,50,0"`` as numbers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= least for part in parts):
        raise bad(option, repr(text), f"whole numbers from {least} with commas between them, such as 50,20")
    return [int(part) for part in parts]


def refuse_beside_resume(context: typer.Context, *allowed: str) -> None:
    """A run goes on as it began: raise InputError for an option that would be of no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name not in ("resume", *allowed) and source is not None and source.name == "COMMANDLINE":
            rest = " or ".join(f"--{name.replace('_', '-')}" for name in allowed)
            expected = f"{rest} at most: what else a run does is in its run.yaml, which may be edited"
            raise bad("--resume", f"{parameter.opts[0]} beside it", expected)
