"""The command line: ``udas-fast COMMAND``, one function each."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from udas_fast.atomic import atomic_write
from udas_fast.errors import InputError, bad, unknown
from udas_fast.options import (
    KINDS,
    Device,
    Engine,
    Every,
    Json,
    Labels,
    Model,
    RecipeFile,
    RecipeName,
    Resume,
    RunFolder,
    Seed,
    Settings,
    Small,
    Weights,
    numbers,
    parse_size,
    refuse_beside_resume,
)

if TYPE_CHECKING:
    from udas_fast.recipes import Recipe

app = typer.Typer(
    help="Train semantic segmentation across domains: labelled synthetic images, unlabelled real ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
INTERRUPTED = 130  # the shell's code for a run ended by Ctrl-C
SHARED = ("train", "translate", "evaluate")  # what the processes of torchrun do together


@app.callback()
def refuse_copies(context: typer.Context) -> None:
    """Under torchrun every process would do the whole of a command that is not shared, into one folder."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or context.invoked_subcommand in SHARED:
        return
    from udas_fast.distributed import launched_processes  # late: torch takes a second to import

    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        raise typer.Exit  # without a failure, for which torchrun would end the main process before it has said why
    expected = (
        f"one: start it without torchrun, as only {', '.join(SHARED[:-1])} and {SHARED[-1]} share their work"
    )
    raise bad(str(context.invoked_subcommand), f"{launched_processes()} processes (WORLD_SIZE)", expected)


@app.command()
def train(
    context: typer.Context,
    recipe: RecipeName = None,
    recipe_file: RecipeFile = None,
    source: Annotated[str | None, typer.Option(metavar="KIND:ROOT", help="labelled source domain")] = None,
    target: Annotated[str | None, typer.Option(metavar="KIND:ROOT", help="target domain")] = None,
    num_labels: Labels = 0,
    out: RunFolder = None,
    small: Small = None,
    steps: Annotated[
        int | None, typer.Option(help="with --small: optimisation steps of each network, over all stages")
    ] = None,
    settings: Settings = None,
    weights: Weights = None,
    stages: Annotated[str | None, typer.Option(help="run these stages only: NAME[,NAME]")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="start from the model of this finished run, or model.safetensors"),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int, typer.Option(min=0, help="loader processes (torch) or threads (DALI) per stream")
    ] = 0,
    engine: Engine = "auto",
    max_bad_files: Annotated[
        int,
        typer.Option(
            min=0,
            help="files that may turn bad during the run and are skipped, over all processes; --resume can raise it",
        ),
    ] = 0,
    max_bad_steps: Annotated[
        int, typer.Option(min=0, help="steps with losses that are not finite which are left out and counted")
    ] = 0,
    checkpoint_every: Every = 500,
    device: Device = "auto",
    resume: Resume = None,
) -> None:
    """Train a recipe, or go on with a run that was stopped.

    KIND:ROOT names a dataset, for example gta5:DATA/gta5 or streets:sim. KIND is one of cityscapes, gta5, synthia,
    camvid, camvid-day, camvid-dusk, folder, streets, translated.
    """
    from udas_fast import distributed
    from udas_fast.data import ENGINES
    from udas_fast.data.domains import DataConfig
    from udas_fast.distributed import join, leave, restarted
    from udas_fast.recipes import select_stages
    from udas_fast.training.trainer import Trainer

    if resume is not None:
        refuse_beside_resume(context, "max_bad_files", "device")
    join(device)
    if restarted() and out is not None and (out / "run.yaml").is_file():
        resume = out
    if resume is not None:
        trainer = Trainer.resume(resume, max_bad_files=max_bad_files, device=device)
    else:
        chosen = _choose_recipe("train", recipe, recipe_file, small, steps, settings)
        if out is None:
            raise bad("--out", "none", "the folder of the run")
        if engine not in ENGINES:
            raise unknown("--engine", engine, ENGINES)
        if stages is not None:
            first, chosen = chosen.stages[0], select_stages(chosen, stages.split(","))
            if chosen.stages[0] is not first and start is None and weights is None:
                raise bad("--from", "none", f"the run whose model stage {chosen.stages[0].name} starts from")
        trainer = Trainer(
            chosen,
            DataConfig(source, target, num_labels, workers, engine, max_bad_files),
            run_dir=out,
            weights=weights,
            start=start,
            seed=seed,
            device=device,
            checkpoint_every=checkpoint_every,
            max_bad_steps=max_bad_steps,
        )
    if distributed.is_main():
        print(f"already complete: {trainer.run_dir}" if trainer.complete else trainer.describe())
    scores = trainer.fit()
    if distributed.is_main():
        _print_scores(scores, trainer.classes)
        print(f"run folder: {trainer.run_dir}; next: udas-fast report {shlex.quote(str(trainer.run_dir))}")
    leave()


def _choose_recipe(
    command: str,
    name: str | None,
    file: Path | None,
    small: str | None,
    steps: int | None,
    settings: Sequence[str] | None,
) -> Recipe:
    from udas_fast.recipes import get_recipe, load_recipe, override
    from udas_fast.recipes import small as scale_down

    if (name is None) == (file is None):
        raise bad(command, "both of them" if name else "neither", "a recipe's name or --recipe FILE")
    chosen = get_recipe(name) if name is not None else load_recipe(file)
    if (small is None) != (steps is None):
        raise bad("--small and --steps", "one of them", "both or neither")
    if small is not None:
        chosen = scale_down(chosen, size=parse_size(small, "--small"), steps=steps)
    return override(chosen, settings or ())


@app.command()
def plan(
    recipe: RecipeName = None,
    recipe_file: RecipeFile = None,
    small: Small = None,
    settings: Settings = None,
    batches: Annotated[str, typer.Option(help="batch sizes: N[,N]")] = "1,2,4",
    classes: Annotated[int, typer.Option(min=2, max=255, help="classes of the data")] = 19,
    num_labels: Labels = 0,
    json_file: Json = None,
) -> None:
    """Predict which cards a recipe fits, without a GPU.

    For each stage, batch size and activation checkpointing: the peak of its memory.
    """
    from tqdm import tqdm

    from udas_fast.memory import plan as predict_all
    from udas_fast.memory import plan_table

    # The length of a run is not its memory; --small only has to be given one.
    steps = None if small is None else 600
    chosen = _choose_recipe("plan", recipe, recipe_file, small, steps, settings)
    with tqdm(unit="prediction", leave=False, disable=None) as bar:
        rows = predict_all(
            chosen,
            batch_sizes=numbers("--batches", batches, least=1),
            num_classes=classes,
            labelled=num_labels > 0,
            progress=bar.update,
        )
    print(plan_table(rows))
    if json_file is not None:
        document = {"recipe": chosen.to_dict(), "rows": [row.to_dict() for row in rows]}
        atomic_write(json.dumps(document, indent=2) + "\n", json_file)


@app.command()
def translate(
    context: typer.Context,
    source: Annotated[str | None, typer.Option(metavar="KIND:ROOT", help="domain to translate")] = None,
    target: Annotated[str | None, typer.Option(metavar="KIND:ROOT", help="domain to look like")] = None,
    out: RunFolder = None,
    small: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="for CPUs: small networks, crops of this size")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="with --small: optimisation steps")] = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="recipe cyclegan in YAML, with other numbers")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of recipe cyclegan")] = None,
    semantic: Annotated[
        str | None, typer.Option(help="run with a segmentation network that is to see the same in both looks")
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int, typer.Option(min=0, help="loader processes or threads, and images written at once")
    ] = 0,
    checkpoint_every: Every = 500,
    device: Device = "auto",
    resume: Resume = None,
) -> None:
    """Give the source the target's look by a CycleGAN.

    It is trained, then it translates every training image of the source; `train --source translated:OUT` uses these.
    """
    from udas_fast import distributed
    from udas_fast.data.domains import DataConfig
    from udas_fast.distributed import join, leave
    from udas_fast.recipes import get_recipe, load_recipe, override
    from udas_fast.recipes.cyclegan import small_cyclegan
    from udas_fast.translation import Translation, TranslationConfig, at_native_size

    if resume is not None:
        refuse_beside_resume(context, "device")
    join(device)
    if resume is not None:
        translation = Translation.resume(resume, device=device)
    else:
        if out is None:
            raise bad("--out", "none", "the folder of the run")
        if (small is None) != (steps is None):
            raise bad("--small and --steps", "one of them", "both or neither")
        chosen = get_recipe("cyclegan") if recipe_file is None else load_recipe(recipe_file)
        if small is not None:
            chosen = small_cyclegan(chosen, crop=parse_size(small, "--small"), steps=steps)
        data = DataConfig(source, target, workers=workers)
        translation = Translation(
            override(at_native_size(chosen, data), settings or ()),
            TranslationConfig(data, semantic, seed, checkpoint_every=checkpoint_every),
            run_dir=out,
            device=device,
        )
    if distributed.is_main():
        print(translation.describe())
    made = translation.fit()
    if distributed.is_main():
        print(f"{made} images translated" if made else "already complete")
        print(f"run folder: {translation.run_dir}, for training: --source translated:{translation.run_dir}")
    leave()


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(metavar="KIND:ROOT", help=f"KIND is one of {KINDS}")],
    split: Annotated[str, typer.Option(help="train, val, or another that the dataset has")] = "val",
    json_file: Json = None,
    device: Device = "auto",
) -> None:
    """Score a trained model on a labelled dataset.

    Labels are compared at their own size.
    """
    from udas_fast import distributed
    from udas_fast.data import open_dataset
    from udas_fast.distributed import join, leave
    from udas_fast.evaluation import evaluate_dataset
    from udas_fast.inference import TrainedModel

    trained = TrainedModel.load(model, join(device))
    dataset = open_dataset(data, split, size=trained.size)
    if difference := dataset.classes.first_difference(trained.classes):
        raise bad(
            f"dataset {data}",
            f"{len(dataset.classes)} classes for the model's {len(trained.classes)}, {difference}",
            "the model's classes",
        )
    scores = evaluate_dataset(trained.model, dataset, split, trained.size)
    if distributed.is_main():
        _print_scores({split: scores}, trained.classes)
        if json_file is not None:
            atomic_write(json.dumps(scores.to_dict(), indent=2) + "\n", json_file)
    leave()


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="images, folders of images, videos")],
    out: Annotated[Path, typer.Option(help="folder for NAME_ids.png, NAME_colour.png and so on")],
    write: Annotated[str, typer.Option(help="what of each image: ids, colour, overlay, confidence")] = (
        "ids,colour"
    ),
    native: Annotated[
        bool, typer.Option("--native", help="show images at their own size, not at the one of training")
    ] = False,
    tile: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="overlapping parts seen one by one, for large images"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Label images, folders and videos.

    Train ids, colours and more as PNG files, at each image's own size.
    """
    from udas_fast.distributed import resolve_device
    from udas_fast.inference import TrainedModel, media_files, predict_files

    files, parts = media_files(images), None if tile is None else parse_size(tile, "--tile")
    trained = TrainedModel.load(model, resolve_device(device))
    count = predict_files(trained, files, out, pictures=write.split(","), native=native, tile=parts)
    print(f"{count} image{'s' * (count != 1)} labelled in {out}")


@app.command()
def export(
    model: Model,
    form: Annotated[str, typer.Option("--format", help="torch (torch.export, .pt2) or onnx")],
    out: Annotated[Path, typer.Option(help="the file, NAME.pt2 or NAME.onnx; NAME.….json tells what it is")],
) -> None:
    """Write a trained model for use without udas_fast.

    It takes uint8 images of any size and returns logits. What it returns is compared with the original's.
    """
    from udas_fast.inference import TrainedModel, export_model

    print(f"{out}: {export_model(TrainedModel.load(model), out, form)}")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="folders of runs, also unfinished ones")
    ],
    out: Annotated[Path | None, typer.Option(help="the page; for one run RUN/report.html")] = None,
) -> None:
    """Write one HTML page about one or more runs.

    Curves, scores, pictures and speed, with several runs side by side; the page needs no network.
    """
    from udas_fast.tools.report import write_report

    print(write_report(runs, out))


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="folder of a run")],
    once: Annotated[bool, typer.Option("--once", help="print it as it is now and end")] = False,
) -> None:
    """Follow a run in the terminal.

    Step, losses, rate, time left, scores and images, until the run is complete or Ctrl-C.
    """
    from udas_fast.tools.report import watch_run

    watch_run(run, once=once)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="folders of runs")],
    json_file: Json = None,
) -> None:
    """Print the final scores of runs side by side.

    With their differences to the first, and whether they compare.
    """
    from udas_fast.tools.report import compare_runs

    text, document = compare_runs(runs)
    print(text)
    if json_file is not None:
        atomic_write(json.dumps(document, indent=2) + "\n", json_file)


@app.command()
def study(
    kind: Annotated[str, typer.Argument(metavar="STUDY", help="ablation, labels or methods")],
    source: Annotated[str, typer.Option(metavar="KIND:ROOT", help="labelled source domain")],
    target: Annotated[str, typer.Option(metavar="KIND:ROOT", help="target domain")],
    out: Annotated[Path, typer.Option(help="folder of the runs and tables; studies may share one")],
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    num_labels: Annotated[
        str, typer.Option(help="numbers of labelled target images; the ablation takes the first")
    ] = "50,20,0",
    translate: Annotated[str, typer.Option(help="lab, fda, none, or translated:DIR")] = "lab",
    recipe_files: Annotated[
        list[Path] | None, typer.Option("--recipe", help="a recipe in YAML that joins the methods")
    ] = None,
    small: Small = None,
    steps: Annotated[
        int | None, typer.Option(help="with --small: optimisation steps of each network of a run")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE of the recipes that have the key, or RECIPE[,RECIPE]:KEY=VALUE"
        ),
    ] = None,
    weights: Weights = None,
    engine: Engine = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="runs side by side")] = 1,
    device: Device = "auto",
) -> None:
    """Make a table of many runs, over several seeds.

    What each part of UDAS is worth (ablation), how many labels it takes (labels), or all methods (methods).
    Complete runs are kept and cut ones go on, so the same command continues a study.
    """
    from udas_fast.data import ENGINES
    from udas_fast.tools.study import Task, plan_study, run_study

    if engine not in ENGINES:
        raise unknown("--engine", engine, ENGINES)
    size = None if small is None else parse_size(small, "--small")
    task = Task(
        source,
        target,
        translate,
        size,
        steps,
        settings=tuple(settings or ()),
        recipes=tuple(map(str, recipe_files or ())),
        engine=engine,
        weights=weights,
        device=device,
    )
    plan = plan_study(
        kind, task, seeds=numbers("--seeds", seeds), num_labels=numbers("--num-labels", num_labels)
    )
    run_study(plan, out, command=shlex.join(["udas-fast", *sys.argv[1:]]), jobs=jobs)
    print((out / kind / "table.md").read_text(encoding="utf-8"))
    print(f"tables and pictures: {out / kind}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the runs, the table and the figure")] = Path(
        "runs/demo"
    ),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train four recipes on procedural streets.

    From sim to real: a table and a figure of what adaptation is worth.
    """
    from udas_fast.tools.demo import run_demo

    run_demo(out, seed=seed, device=device)


@app.command("check-data")
def check_data(
    data: Annotated[str, typer.Argument(metavar="KIND:ROOT", help=f"KIND is one of {KINDS}")],
    split: Annotated[str, typer.Option(help="train, val, or another that the dataset has")] = "train",
) -> None:
    """Read every file of a dataset and name what is wrong.

    Damaged images, sizes that differ, ids outside the map; and how often each class occurs.
    """
    from tqdm import tqdm

    from udas_fast.data import check_dataset, open_dataset

    dataset = open_dataset(data, split)
    with tqdm(total=len(dataset), unit="image", leave=False, disable=None) as bar:
        report = check_dataset(dataset, progress=bar.update)
    sizes = ", ".join(f"{count} of {h}x{w}" for (h, w), count in report.sizes.items())
    print(f"{data} {split}: {report.images} images ({sizes}), {report.ignored:,} ignored pixels")
    print("{:<20}{:>16}{:>9}{:>8}".format("class", "pixels", "share", "images"))
    for row in report.rows():
        print("{:<20}{:>16}{:>9}{:>8}".format(*row))
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if report.problems:
        raise InputError(f"{data} {split}: {len(report.problems)} problems in {report.images} images")
    print("no problems")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes; `recipes show NAME` prints one.

    As YAML, which `--recipe FILE` reads.
    """
    from udas_fast.recipes import all_recipes
    from udas_fast.recipes.listing import listing

    if context.invoked_subcommand is None:
        print(listing(all_recipes().values()))


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print every number of a recipe as YAML."""
    from udas_fast.recipes import get_recipe

    print(get_recipe(name).to_yaml(), end="")


@app.command()
def doctor() -> None:
    """Tell what was built, what runs here, what is missing."""
    from udas_fast.tools.doctor import diagnose

    print(diagnose())


def _print_scores(scores: dict, classes: object) -> None:
    from udas_fast.evaluation import scores_table

    if scores:
        print(scores_table(scores, classes))


def main() -> None:
    """Entry point: an :class:`InputError` becomes one sentence and exit code 2, an interruption 130.

    Among several processes the sentence is that of the one that stopped first, and it is said once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "–" or a name's letters ends no run
    try:
        app(standalone_mode=True)
    except InputError as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        from udas_fast.distributed import ProcessLost
        from udas_fast.engine.interrupt import Interrupted

        if not isinstance(error, (Interrupted, ProcessLost)):
            raise
        _say(error)
        asked = isinstance(error, Interrupted) or error.interrupted
        sys.exit(INTERRUPTED if asked else 1)


def _say(error: Exception) -> None:
    from udas_fast.distributed import stopped_first

    if stopped_first(error):
        print(f"udas-fast: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
