"""Commands that train: ``train``, ``plan`` and ``translate``."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from udas_fast.cli.options import (
    DATA,
    RECIPE,
    RUN,
    SIZE,
    AllowOtherData,
    BatchSize,
    BitDepth,
    CheckpointEvery,
    ChosenLabels,
    Device,
    Engine,
    EvaluateEvery,
    Json,
    KeepBest,
    Labelled,
    LearningRate,
    Log,
    LogEvery,
    MethodFiles,
    Network,
    NumLabels,
    RecipeFile,
    RecipeName,
    ResetHead,
    Resume,
    RunFolder,
    Seed,
    Settings,
    Size,
    Small,
    Sources,
    Steps,
    Target,
    TaskFile,
    Translate,
    UnlabelledImages,
    Weights,
    load_methods,
    one_of,
    parse_batch_sizes,
    parse_num_labels,
    parse_size,
    read_changes,
    read_network,
    read_recipe,
    refuse_beside_resume,
    write_json,
)
from udas_fast.errors import bad

if TYPE_CHECKING:
    from udas_fast.recipes import Recipe


def train(
    context: typer.Context,
    recipe: RecipeName = None,
    recipe_file: RecipeFile = None,
    method_files: MethodFiles = None,
    sources: Sources = None,
    target: Target = None,
    num_labels: ChosenLabels = None,
    labelled: Labelled = None,
    unlabelled: UnlabelledImages = None,
    out: RunFolder = None,
    small: Small = None,
    size: Size = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    translate: Translate = None,
    settings: Settings = None,
    network: Network = None,
    weights: Weights = None,
    reset_head: ResetHead = False,
    stages: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", rich_help_panel=RECIPE, help="run these stages only")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            rich_help_panel=RECIPE,
            help="start from the model of this finished run, or model.safetensors; fresh students of later "
            "stages too",
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=DATA,
            help="loader processes (torch) or threads (DALI) per stream",
        ),
    ] = 0,
    engine: Engine = "auto",
    bit_depth: BitDepth = None,
    classes: TaskFile = None,
    max_bad_files: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=DATA,
            help="files that may turn bad during the run and are skipped, over all processes; --resume can raise it",
        ),
    ] = 0,
    max_bad_steps: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=RUN,
            help="steps with losses that are not finite that may be skipped",
        ),
    ] = 0,
    checkpoint_every: CheckpointEvery = 500,
    log_every: LogEvery = 20,
    evaluate_every: EvaluateEvery = None,
    keep_best: KeepBest = False,
    log: Log = None,
    device: Device = "auto",
    resume: Resume = None,
    allow_other_data: AllowOtherData = False,
) -> None:
    """Train a recipe, or go on with a run that was stopped.

    KIND:ROOT names a dataset, for example gta5:DATA/gta5 or streets:sim. KIND is one of those that `udas-fast kinds`
    lists.
    """
    from udas_fast import distributed
    from udas_fast.data import ENGINES, read_task
    from udas_fast.data.domains import DataConfig
    from udas_fast.distributed import join, leave, restarted
    from udas_fast.engine.trackers import TRACKERS
    from udas_fast.evaluation import scores_table
    from udas_fast.training.trainer import Trainer

    if resume is not None:
        refuse_beside_resume(
            context, "max_bad_files", "allow_other_data", "method_files", "network", "log", "device"
        )
    elif allow_other_data:
        raise bad("--allow-other-data", "no --resume", "the run that goes on with other files")
    load_methods(method_files)
    model, settings = read_network(network, settings)
    callbacks = [TRACKERS[one_of("--log", name, TRACKERS)]() for name in dict.fromkeys(log or ())]
    join(device)
    if restarted() and out is not None and (out / "run.yaml").is_file():
        resume = out
    if resume is not None:
        trainer = Trainer.resume(
            resume,
            model=model,
            max_bad_files=max_bad_files,
            allow_other_data=allow_other_data,
            device=device,
            callbacks=callbacks,
        )
    else:
        changes = read_changes(small, size, steps, batch_size, lr, translate)
        chosen = read_recipe("train", recipe, recipe_file, changes, settings)
        if out is None:
            raise bad("--out", "none", "the folder of the run")
        if stages is not None:
            chosen = _select_stages(chosen, stages, has_start=bool(start or weights))
        data = DataConfig(
            sources[0] if sources and len(sources) == 1 else tuple(sources or ()) or None,
            target,
            parse_num_labels(num_labels),
            workers,
            one_of("--engine", engine, ENGINES),
            max_bad_files,
            labelled,
            unlabelled,
            bit_depth,
            None if classes is None else read_task(classes),
        )
        trainer = Trainer(
            chosen,
            data,
            model,
            run_dir=out,
            weights=weights,
            reset_head=reset_head,
            start=start,
            seed=seed,
            device=device,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            max_bad_steps=max_bad_steps,
            evaluate_every=evaluate_every,
            keep_best=keep_best,
            callbacks=callbacks,
        )
    if distributed.is_main():
        print(f"already complete: {trainer.run_dir}" if trainer.complete else trainer.describe())
    scores = trainer.fit()
    if distributed.is_main():
        if scores:
            print(scores_table(scores, trainer.classes))
        print(f"run folder: {trainer.run_dir}; next: udas-fast report {shlex.quote(str(trainer.run_dir))}")
    leave()


def _select_stages(recipe: Recipe, names: str, *, has_start: bool) -> Recipe:
    """Return ``recipe`` with the stages of --stages; a later stage has to start from something."""
    from udas_fast.recipes import select_stages

    chosen = select_stages(recipe, names.split(","))
    if chosen.stages[0] is not recipe.stages[0] and not has_start:
        raise bad("--from", "none", f"the run whose model stage {chosen.stages[0].name} starts from")
    return chosen


def plan(
    recipe: RecipeName = None,
    recipe_file: RecipeFile = None,
    method_files: MethodFiles = None,
    small: Small = None,
    size: Size = None,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N[,N...]",
            rich_help_panel=RECIPE,
            help="batch sizes to compare; STREAM=N among them is the size of one stream in all of them",
        ),
    ] = "1,2,4",
    settings: Settings = None,
    classes: Annotated[
        int,
        typer.Option(min=2, max=255, metavar="N", rich_help_panel=DATA, help="number of classes of the data"),
    ] = 19,
    num_labels: NumLabels = 0,
    json_file: Json = None,
) -> None:
    """Predict which cards a recipe fits, without a GPU.

    For each stage, batch size and activation checkpointing: the peak of its memory.
    """
    from tqdm import tqdm

    from udas_fast.memory import plan as predict_all
    from udas_fast.memory import plan_table

    load_methods(method_files)
    sizes, streams = parse_batch_sizes(batch_size)
    changes = replace(read_changes(small, size), stream_batch_size=streams)
    chosen = read_recipe("plan", recipe, recipe_file, changes, settings)
    with tqdm(unit="prediction", leave=False, disable=None) as bar:
        rows = predict_all(
            chosen,
            batch_sizes=sizes or [chosen.input.batch_size],
            num_classes=classes,
            labelled=num_labels > 0,
            progress=bar.update,
        )
    if named := {name: size for name, size in asdict(streams).items() if size}:
        print("batches of single streams: " + ", ".join(f"{name} {size}" for name, size in named.items()))
    print(plan_table(rows))
    write_json({"recipe": chosen.to_dict(), "rows": [row.to_dict() for row in rows]}, json_file)


def translate(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Option(metavar="KIND:ROOT", rich_help_panel=DATA, help="domain whose images are translated"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="KIND:ROOT", rich_help_panel=DATA, help="domain whose style they are given"),
    ] = None,
    out: RunFolder = None,
    recipe_file: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            rich_help_panel=RECIPE,
            help="recipe cyclegan in YAML, with other numbers",
        ),
    ] = None,
    small: Annotated[
        str | None,
        typer.Option(
            metavar=SIZE,
            rich_help_panel=RECIPE,
            help="for CPUs: small networks, crops of this size and 600 steps; other options still apply",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar=SIZE,
            rich_help_panel=RECIPE,
            help="crops to train on; whole images are translated at their own size",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", rich_help_panel=RECIPE, help="optimisation steps")
    ] = None,
    batch_size: BatchSize = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="RATE", rich_help_panel=RECIPE, help="learning rate of the generators"),
    ] = None,
    settings: Settings = None,
    semantic: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            rich_help_panel=RECIPE,
            help="run of a segmentation network whose predictions the translation should keep",
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=DATA,
            help="loader processes or threads, and images written at once",
        ),
    ] = 0,
    bit_depth: BitDepth = None,
    checkpoint_every: CheckpointEvery = 500,
    log_every: LogEvery = 20,
    device: Device = "auto",
    resume: Resume = None,
    allow_other_data: AllowOtherData = False,
) -> None:
    """Give the source the target's style by a CycleGAN.

    It is trained, then it translates every training image of the source; `train --source translated:OUT` uses these.
    """
    from udas_fast import distributed
    from udas_fast.data.domains import DataConfig
    from udas_fast.distributed import join, leave
    from udas_fast.recipes import override
    from udas_fast.training.translation import Translation, TranslationConfig, at_native_size

    if resume is not None:
        refuse_beside_resume(context, "allow_other_data", "device")
    elif allow_other_data:
        raise bad("--allow-other-data", "no --resume", "the run that goes on with other files")
    join(device)
    if resume is not None:
        translation = Translation.resume(resume, allow_other_data=allow_other_data, device=device)
    else:
        if out is None:
            raise bad("--out", "none", "the folder of the run")
        chosen = _read_cyclegan(recipe_file, small, size, steps, batch_size, lr)
        data = DataConfig(source, target, workers=workers, bit_depth=bit_depth)
        translation = Translation(
            override(at_native_size(chosen, data), settings or ()),
            TranslationConfig(data, semantic, seed, log_every, checkpoint_every),
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


def _read_cyclegan(
    file: Path | None,
    small: str | None,
    size: str | None,
    steps: int | None,
    batch_size: str | None,
    lr: float | None,
) -> Recipe:
    """Return recipe cyclegan, or that of ``file``, with these changes; a size is that of its crops."""
    from udas_fast.recipes.cyclegan import SMALL_STEPS, small_cyclegan

    name = "cyclegan" if file is None else None
    recipe = read_recipe("translate", name, file, read_changes(batch_size=batch_size, lr=lr), ())
    if small is not None:
        recipe = small_cyclegan(recipe, crop=parse_size(small, "--small"), steps=steps or SMALL_STEPS)
    elif steps is not None:
        recipe = read_changes(steps=steps).apply(recipe)
    if size is not None:
        crop, inputs = parse_size(size, "--size"), recipe.input
        source, target = (replace(geometry, crop=crop) for geometry in (inputs.source, inputs.target))
        recipe = replace(recipe, input=replace(inputs, source=source, target=target))
    return recipe
