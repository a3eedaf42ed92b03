"""Options that several commands take, by the name of their type, and how their text is read.

An option of every command that works on recipes belongs here, as a type like :data:`Settings`; one of ``udas-fast``
itself belongs to ``cli/__init__.py:begin``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from udas_fast.atomic import atomic_write
from udas_fast.errors import bad, unknown

if TYPE_CHECKING:
    import torch

    from udas_fast.inference import TrainedModel
    from udas_fast.models import NetworkFunction
    from udas_fast.recipes import Changes, Recipe, StreamBatchSize

Value = TypeVar("Value")

# Sections of the help of long commands (cli/help.py).
DATA, RECIPE, RUN = "Data", "Recipe", "Run"
KINDS = "those that `udas-fast kinds` lists"
SIZE = "HEIGHTxWIDTH"
OUT = ("--out", "-o")

# The recipe, and what is changed of it.
RecipeName = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="a name that `udas-fast recipes` lists")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", rich_help_panel=RECIPE, help="a recipe in YAML, in place of a name"
    ),
]
Small = Annotated[
    str | None,
    typer.Option(
        metavar=SIZE,
        rich_help_panel=RECIPE,
        help="for CPUs: a narrow ResNet-18, images of this size, batches of 4 and 600 steps; other options still apply",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar=SIZE,
        rich_help_panel=RECIPE,
        help="resize the images of both domains; crops that no longer fit shrink in proportion, and domains that "
        "were shown at one size still are",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=RECIPE,
        help="optimisation steps of each network, shared among its stages and rounds in the recipe's proportions "
        "(with --small a third is for later rounds)",
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N[,STREAM=N]",
        rich_help_panel=RECIPE,
        help="images in a step, over all processes; by stream: source=2,unlabelled=4",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="RATE",
        rich_help_panel=RECIPE,
        help="learning rate of the first stage; later stages keep their proportion to it",
    ),
]
Translate = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RECIPE,
        help="how the source gets the target's style: cyclegan (trained first, into OUT/translation), lab, fda or none",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=RECIPE,
        help="any number of the recipe; stages.*.KEY=VALUE is for every stage that has the key; may be given again",
    ),
]
MethodFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--method-file",
        metavar="FILE",
        rich_help_panel=RECIPE,
        help="Python file with methods and recipes of your own; may be given again",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", rich_help_panel=RECIPE, help="torchvision ResNet or AdaptSegNet checkpoint"),
]
Network = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        rich_help_panel=RECIPE,
        help="a network of your own: build(num_classes, **options), imported also from the working folder",
    ),
]
ResetHead = Annotated[
    bool,
    typer.Option(
        "--reset-head",
        rich_help_panel=RECIPE,
        help="with --weights of other classes: keep all but the layers that return a value for each class",
    ),
]

# Data.
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="KIND:ROOT[=SHARE]",
        rich_help_panel=DATA,
        help="labelled source domain; may be given again, and images are drawn in proportion to the shares, 1 unless "
        "given",
    ),
]
Target = Annotated[str | None, typer.Option(metavar="KIND:ROOT", rich_help_panel=DATA, help="target domain")]
NumLabels = Annotated[
    int,
    typer.Option(min=0, metavar="N", rich_help_panel=DATA, help="labelled target images that may be used"),
]
ChosenLabels = Annotated[
    str | None,
    typer.Option(
        "--num-labels",
        metavar="all|N|FILE",
        rich_help_panel=DATA,
        help="labelled target images that may be used: all that have a label, N of them, or a list of ids, one a line",
    ),
]
Labelled = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:ROOT",
        rich_help_panel=DATA,
        help="labelled target images in a dataset of their own; all of them unless --num-labels says which",
    ),
]
UnlabelledImages = Annotated[
    str | None,
    typer.Option(
        "--unlabelled",
        metavar="KIND:ROOT[@SPLIT]",
        rich_help_panel=DATA,
        help="unlabelled target images, such as cityscapes:ROOT@train_extra; else the target's training images but for "
        "the labelled ones",
    ),
]
TaskFile = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        rich_help_panel=DATA,
        help="classes of the task in YAML, as classes of the data by name: `vehicle: [car, truck, bus]`; others are "
        "ignored",
    ),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=16,
        metavar="N",
        rich_help_panel=DATA,
        help="bits of the sensor whose images are files of 16 bits; the least that holds their pixels unless given",
    ),
]
Engine = Annotated[
    str, typer.Option(metavar="NAME", rich_help_panel=DATA, help="data engine: torch, dali, or auto")
]
Split = Annotated[str, typer.Option(metavar="NAME", help="train, val, or another that the dataset has")]

# The run.
RunFolder = Annotated[
    Path | None, typer.Option(*OUT, metavar="FOLDER", rich_help_panel=RUN, help="folder of the run")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", rich_help_panel=RUN, help="go on with the run in this folder, as its run.yaml says"
    ),
]
AllowOtherData = Annotated[
    bool,
    typer.Option(
        "--allow-other-data",
        rich_help_panel=RUN,
        help="with --resume: go on though files of the datasets are gone, new or of another size",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, metavar="N", rich_help_panel=RUN, help="all random numbers follow from this number"),
]
CheckpointEvery = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=RUN, help="steps between two checkpoints")
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=RUN,
        help="score the network on the target's val split every N steps, in scores.jsonl; after each round only unless "
        "given",
    ),
]
KeepBest = Annotated[
    bool,
    typer.Option(
        "--keep-best",
        rich_help_panel=RUN,
        help="with --evaluate-every: keep the network of the highest mIoU too, as best.safetensors",
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, metavar="N", help="processes that decode images ahead; 0 is this one")
]
LogEvery = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=RUN,
        help="steps between two updates of the log, metrics.jsonl, which has every step",
    ),
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="NAME",
        rich_help_panel=RUN,
        help="log to this tracker too: wandb or mlflow, which has to be installed; may be given again",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", rich_help_panel=RUN, help="auto, cpu, cuda or cuda:N")]

# Trained models and results.
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="a run's folder, a model.safetensors or an exported .onnx")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="also write the figures to this file")
]


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Read ``"180x240"`` as (height, width)."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise bad(option, repr(text), "HEIGHTxWIDTH, for example 180x240")
    return int(height), int(width)


def parse_views(text: str | None) -> tuple[bool, tuple[float, ...]]:
    """Read ``"flip,0.75,1.25"`` as (mirrored, scales); the image's own scale is always among them."""
    flips, scales = False, [1.0]
    for part in () if text is None else text.split(","):
        if part.strip() == "flip":
            flips = True
            continue
        try:
            scale = float(part)
        except ValueError:
            scale = 0.0
        if not 0.1 <= scale <= 10:
            raise bad("--views", repr(part), "flip or a scale from 0.1 to 10, with commas between several")
        if scale not in scales:
            scales.append(scale)
    return flips, tuple(scales)


def parse_numbers(text: str, option: str) -> list[int]:
    """Read ``"100,50,0"`` as numbers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise bad(option, repr(text), "whole numbers from 0 with commas between them, such as 50,20")
    return [int(part) for part in parts]


def parse_num_labels(text: str | None) -> int | str | None:
    """Read ``"50"`` as a number; ``"all"`` and the path of a list of ids stay as they are."""
    if text is None or not text.removeprefix("-").isdecimal():
        return text
    if text.startswith("-"):
        raise bad("--num-labels", text, "all, a number from 0, or the file of a list of ids")
    return int(text)


def parse_batch_sizes(text: str) -> tuple[list[int], StreamBatchSize]:
    """Read ``"4"``, ``"source=2,unlabelled=4"`` or ``"4,unlabelled=8"``: plain sizes, and those of single streams."""
    from udas_fast.recipes import StreamBatchSize

    plain: list[int] = []
    streams: dict[str, int] = {}
    known = [field.name for field in fields(StreamBatchSize)]
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        if not number.isdecimal() or not int(number) or name in streams:
            expected = "N or STREAM=N, with commas between several, such as source=2,unlabelled=4"
            raise bad("--batch-size", repr(text), expected)
        if not equals:
            plain.append(int(number))
        elif name not in known:
            raise unknown("--batch-size: stream", name, known)
        else:
            streams[name] = int(number)
    return plain, StreamBatchSize(**streams)


def one_of(option: str, text: str, known: Iterable[Value]) -> Value:
    """Return the one of ``known`` that ``text`` names; raise InputError with the nearest where there is none."""
    known = list(known)
    for value in known:
        if value == text:
            return value
    raise unknown(option, text, map(str, known))


def read_changes(
    small: str | None = None,
    size: str | None = None,
    steps: int | None = None,
    batch_size: str | None = None,
    lr: float | None = None,
    translate: str | None = None,
) -> Changes:
    """Return the changes of a recipe that the options of these names ask for."""
    from udas_fast.recipes import Changes, StreamBatchSize
    from udas_fast.recipes.translation import TRANSLATIONS

    plain, streams = ([], StreamBatchSize()) if batch_size is None else parse_batch_sizes(batch_size)
    if len(plain) > 1:
        raise bad("--batch-size", repr(batch_size), "one number beside those of single streams")
    return Changes(
        small=None if small is None else parse_size(small, "--small"),
        size=None if size is None else parse_size(size, "--size"),
        steps=steps,
        batch_size=plain[0] if plain else None,
        stream_batch_size=streams,
        lr=lr,
        translate=None if translate is None else one_of("--translate", translate, TRANSLATIONS),
    )


def load_methods(files: Iterable[Path] | None) -> None:
    """Import the files of --method-file, whose recipes are known by name from then on."""
    if files:
        from udas_fast.recipes import load_method_file

        for file in files:
            load_method_file(file)


def read_recipe(
    command: str, name: str | None, file: Path | None, changes: Changes, settings: Sequence[str] | None
) -> Recipe:
    """Return the recipe of this name or file with ``changes``, then with ``settings``."""
    from udas_fast.recipes import get_recipe, load_recipe, override

    if name is not None and file is None:
        recipe = get_recipe(name)
    elif file is not None and name is None:
        recipe = load_recipe(file)
    else:
        raise bad(command, "both of them" if name else "neither", "a recipe's name or --recipe FILE")
    return override(changes.apply(recipe), settings or ())


def read_network(
    name: str | None, settings: Sequence[str] | None = None
) -> tuple[NetworkFunction | None, list[str]]:
    """Return the function of --network with its options, ``--set network.KEY=VALUE``, and the other settings."""
    from udas_fast.models import import_network
    from udas_fast.recipes.settings import read_assignment

    options: dict[str, object] = {}
    others = []
    for setting in settings or ():
        if setting.startswith("network."):
            key, value = read_assignment(setting)
            options[key.removeprefix("network.")] = value
        else:
            others.append(setting)
    if name is None and options:
        raise bad("--set network", "no --network", "the function whose options they are")
    return None if name is None else partial(import_network(name), **options), others


def load_model(path: Path, network: str | None, device: torch.device | str = "cpu") -> TrainedModel:
    """Read a model, built by the function of --network, and say on stderr where it is not the last of its run."""
    from udas_fast import distributed
    from udas_fast.inference import TrainedModel, load_onnx

    function, _ = read_network(network)
    trained = load_onnx(path) if path.suffix == ".onnx" else TrainedModel.load(path, device, function)
    if trained.selected is not None and distributed.is_main():
        print(f"NOTICE: {path} is not the last model of its run: {trained.selected}", file=sys.stderr)
    return trained


def require_alike(paths: list[Path], loaded: list[TrainedModel]) -> None:
    """Raise InputError for models whose softmaxes have no mean: of other classes, or for images of another size."""
    first = loaded[0]
    for path, other in zip(paths, loaded, strict=True):
        if difference := other.classes.first_difference(first.classes):
            raise bad(f"classes of {path}", difference, f"those of {paths[0]}")
        if other.size != first.size:
            raise bad(f"size of {path}", other.size, f"{first.size}, that of {paths[0]}")


def refuse_beside_resume(context: typer.Context, *allowed: str) -> None:
    """Raise InputError for an option beside --resume that would have no effect: a run goes on as it began."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in ("resume", *allowed) and source is not None and source.name == "COMMANDLINE":
            rest = " or ".join(f"--{name.replace('_', '-')}" for name in allowed)
            expected = f"{rest} at most: what else a run does is in its run.yaml, which may be edited"
            raise bad("--resume", f"{parameter.opts[0]} beside it", expected)


def write_json(document: object, file: Path | None) -> None:
    """Write ``document`` to the file of --json, where there is one."""
    if file is not None:
        atomic_write(json.dumps(document, indent=2) + "\n", file)
