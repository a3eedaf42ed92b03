"""Commands that run several recipes or describe the package: ``study``, ``demo``, ``recipes`` and ``doctor``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from udas_fast._build import ENTRY_POINTS
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

if TYPE_CHECKING:
    from udas_fast.tools.study.rows import Study


def study(
    kind: Annotated[str, typer.Argument(metavar="STUDY", help="a name in brackets above, or paper")],
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
        str | None,
        typer.Option(
            metavar="N[,N...]",
            rich_help_panel=DATA,
            help="numbers of labelled target images, of which some studies take the first; 50,20,0 unless given, and "
            "the papers' on their tasks",
        ),
    ] = None,
    translate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=DATA,
            help="lab, fda, none, translated:DIR, or cyclegan, which is trained first; lab unless given, and cyclegan "
            "on the papers' tasks",
        ),
    ] = None,
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
    is_dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=RUN,
            help="print every run, its command and predicted memory; make nothing",
        ),
    ] = False,
) -> None:
    """Make a table of many runs, over several seeds.

    Of UDAS: image sizes (sizes), networks (networks), the gap between domains (gap), what its components add
    (ablation), how many labels it takes (labels), and UDAS without one part at a time (parts). All methods side by side
    (methods); DDM with its ablations (ddm). paper makes all of them; common runs are made once. On GTA5 or SYNTHIA to
    Cityscapes labels, size and translation are the papers' unless given.

    Complete runs are kept and cut ones go on, so the same command continues a study.
    """
    from udas_fast.data import ENGINES
    from udas_fast.tools.study import STUDIES, Task, dry_run, paper, plan_paper, plan_study, run_studies

    load_methods(method_files)
    published = paper.on_published_task(source, target)
    translate = translate or ("cyclegan" if published else "lab")
    makes_translation = translate == "cyclegan"
    changes = read_changes(small, size, steps, batch_size, lr)
    if published and small is None and size is None:
        changes = replace(changes, size=paper.SIZE)
    task = Task(
        source,
        target,
        f"translated:{out / 'translation'}" if makes_translation else translate,
        changes,
        settings=tuple(settings or ()),
        recipes=tuple(map(str, recipe_files or ())),
        engine=one_of("--engine", engine, ENGINES),
        weights=weights,
        device=device,
        makes_translation=makes_translation,
    )
    seed_numbers = parse_numbers(seeds, "--seeds")
    labels = None if num_labels is None else parse_numbers(num_labels, "--num-labels")
    names: tuple[Study | Literal["paper"], ...] = (*STUDIES, "paper")
    chosen = one_of("study", kind, names)
    if chosen == "paper":
        plans = plan_paper(task, seeds=seed_numbers, num_labels=labels)
    else:
        plans = (plan_study(chosen, task, seeds=seed_numbers, num_labels=labels),)
    if is_dry:
        for lines in dry_run(plans, out):
            print(lines, flush=True)
        return
    run_studies(plans, out, command=shlex.join(["udas-fast", *sys.argv[1:]]), jobs=jobs)
    for plan in plans:
        print((out / plan.study / "table.md").read_text(encoding="utf-8"))
        print(f"tables and pictures: {out / plan.study}")


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
    from udas_fast.cli.lists import stored_list

    load_methods(method_files)
    if context.invoked_subcommand is not None:
        return
    if method_files or metadata.entry_points(group=ENTRY_POINTS):  # with recipes of the user's own
        from udas_fast.recipes import all_recipes
        from udas_fast.recipes.listing import listing

        print(listing(all_recipes().values()))
    else:
        print(stored_list("recipes"), end="")


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
