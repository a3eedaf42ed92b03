"""Commands that run several recipes or describe the package: ``study``, ``demo``, ``recipes`` and ``doctor``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from udas_fast.cli.options import (
    DATA,
    OUT,
    RECIPE,
    RUN,
    BatchSize,
    Device,
    Engine,
    LearningRate,
    MethodFiles,
    Seed,
    Size,
    Small,
    Steps,
    Weights,
    load_methods,
    one_of,
    parse_numbers,
    read_changes,
)


def study(
    kind: Annotated[str, typer.Argument(metavar="STUDY", help="ablation, labels or methods")],
    source: Annotated[
        str, typer.Option(metavar="KIND:ROOT", rich_help_panel=DATA, help="labelled source domain")
    ],
    target: Annotated[str, typer.Option(metavar="KIND:ROOT", rich_help_panel=DATA, help="target domain")],
    out: Annotated[
        Path,
        typer.Option(
            *OUT,
            metavar="FOLDER",
            rich_help_panel=RUN,
            help="folder of the runs and tables; studies may share one",
        ),
    ],
    seeds: Annotated[
        str, typer.Option(metavar="N[,N...]", rich_help_panel=RUN, help="seeds of the runs of each row")
    ] = "0,1,2",
    num_labels: Annotated[
        str,
        typer.Option(
            metavar="N[,N...]",
            rich_help_panel=DATA,
            help="numbers of labelled target images; the ablation takes the first",
        ),
    ] = "50,20,0",
    translate: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=DATA, help="lab, fda, none, or translated:DIR")
    ] = "lab",
    recipe_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--recipe", metavar="FILE", rich_help_panel=RECIPE, help="a recipe in YAML that joins the methods"
        ),
    ] = None,
    method_files: MethodFiles = None,
    small: Small = None,
    size: Size = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            rich_help_panel=RECIPE,
            help="any number of every recipe that has the key, or of single ones: RECIPE[,RECIPE]:KEY=VALUE; "
            "may be given again",
        ),
    ] = None,
    weights: Weights = None,
    engine: Engine = "auto",
    jobs: Annotated[int, typer.Option(min=1, metavar="N", rich_help_panel=RUN, help="runs side by side")] = 1,
    device: Device = "auto",
) -> None:
    """Make a table of many runs, over several seeds.

    What each part of UDAS is worth (ablation), how many labels it takes (labels), or all methods (methods).
    Complete runs are kept and cut ones go on, so the same command continues a study.
    """
    from udas_fast.data import ENGINES
    from udas_fast.tools.study import STUDIES, Task, plan_study, run_study

    load_methods(method_files)
    task = Task(
        source,
        target,
        translate,
        changes=read_changes(small, size, steps, batch_size, lr),
        settings=tuple(settings or ()),
        recipes=tuple(map(str, recipe_files or ())),
        engine=one_of("--engine", engine, ENGINES),
        weights=weights,
        device=device,
    )
    plan = plan_study(
        one_of("study", kind, STUDIES),
        task,
        seeds=parse_numbers(seeds, "--seeds"),
        num_labels=parse_numbers(num_labels, "--num-labels"),
    )
    run_study(plan, out, command=shlex.join(["udas-fast", *sys.argv[1:]]), jobs=jobs)
    print((out / kind / "table.md").read_text(encoding="utf-8"))
    print(f"tables and pictures: {out / kind}")


def demo(
    out: Annotated[
        Path, typer.Option(*OUT, metavar="FOLDER", help="folder for the runs, the table and the figure")
    ] = Path("runs/demo"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train four recipes on procedural streets.

    From sim to real: a table and a figure of what adaptation is worth.
    """
    from udas_fast.tools.demo import run_demo

    run_demo(out, seed=seed, device=device)


def recipes(context: typer.Context, method_files: MethodFiles = None) -> None:
    """List the recipes; `recipes show NAME` prints one.

    As YAML, which `--recipe FILE` reads.
    """
    from udas_fast.recipes import all_recipes
    from udas_fast.recipes.listing import listing

    load_methods(method_files)
    if context.invoked_subcommand is None:
        print(listing(all_recipes().values()))


def show_recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="a name that `udas-fast recipes` lists")],
) -> None:
    """Print every number of a recipe as YAML."""
    from udas_fast.recipes import get_recipe

    print(get_recipe(name).to_yaml(), end="")


def doctor() -> None:
    """Report what is built, what works here and what is missing."""
    from udas_fast.tools.doctor import diagnose

    print(diagnose())
