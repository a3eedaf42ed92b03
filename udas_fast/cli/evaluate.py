"""The command ``evaluate``: scores of trained models on a labelled dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from udas_fast.cli.options import (
    KINDS,
    BitDepth,
    Device,
    Json,
    Network,
    Split,
    TaskFile,
    Workers,
    load_model,
    parse_views,
    require_alike,
    write_json,
)
from udas_fast.errors import bad

if TYPE_CHECKING:
    from torch import Tensor

    from udas_fast.data import SegmentationDataset
    from udas_fast.evaluation import Scores
    from udas_fast.inference import TrainedModel


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="a run's folder, a model.safetensors or an exported .onnx; of several the mean is scored",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="KIND:ROOT", help=f"KIND is one of {KINDS}")],
    split: Split = "val",
    bit_depth: BitDepth = None,
    classes: TaskFile = None,
    network: Network = None,
    views: Annotated[
        str | None,
        typer.Option(
            metavar="flip|SCALE[,...]",
            help="also show the image mirrored and at these scales, such as flip,0.75,1.25; the mean is scored",
        ),
    ] = None,
    per_image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the scores of each image as CSV")
    ] = None,
    worst: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="draw the 12 images of the lowest mIoU as PNG, in one view"),
    ] = None,
    is_calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="keep in the model's file the temperature of the softmax that fits these labels best",
        ),
    ] = False,
    workers: Workers = 0,
    json_file: Json = None,
    device: Device = "auto",
) -> None:
    """Score trained models on a labelled dataset.

    Labels are compared at their own size.
    """
    from udas_fast import distributed
    from udas_fast.data import open_dataset, read_task
    from udas_fast.distributed import join, leave
    from udas_fast.evaluation import evaluate_dataset, scores_table

    flips, scales = parse_views(views)
    if is_calibrated and (len(models) > 1 or models[0].suffix == ".onnx"):
        found = f"{len(models)} models" if len(models) > 1 else models[0]
        raise bad("--calibrate", found, "one model of a run, in whose file the temperature is kept")
    place = join(device)
    loaded = [load_model(model, network, place) for model in models]
    require_alike(models, loaded)
    trained = loaded[0]
    depth = bit_depth or trained.bit_depth
    task = None if classes is None else read_task(classes)
    dataset = open_dataset(data, split, size=trained.size, bit_depth=depth, classes=task)
    if difference := dataset.classes.first_difference(trained.classes):
        raise bad(
            f"dataset {data}",
            f"{len(dataset.classes)} classes for the model's {len(trained.classes)}, {difference}",
            "the model's classes; --classes FILE makes them of others",
        )
    if is_calibrated:
        _calibrate(models[0], trained, dataset, workers)
    by_image: dict[str, Tensor] | None = None if per_image is None and worst is None else {}
    scores = evaluate_dataset(
        [one.model for one in loaded],
        dataset,
        split,
        trained.size,
        workers=workers,
        scales=scales,
        flips=flips,
        temperature=trained.temperature if len(loaded) == 1 else 1.0,
        selected="; ".join(dict.fromkeys(one.selected for one in loaded if one.selected)) or None,
        by_image=by_image,
    )
    if distributed.is_main():
        print(scores_table({split: scores}, trained.classes))
        write_json(scores.to_dict(), json_file)
        if by_image is not None:
            named = dict(zip(map(str, models), loaded, strict=True))
            _show_images(by_image, scores, named, dataset, per_image, worst)
    leave()


def _calibrate(path: Path, trained: TrainedModel, dataset: SegmentationDataset, workers: int) -> None:
    """Find the temperature that fits the labels of ``dataset`` best, and keep it in the model's file."""
    from udas_fast import distributed
    from udas_fast.data import evaluation_batches
    from udas_fast.evaluation import fit_temperature
    from udas_fast.inference import MODEL_FILE

    trained.temperature = fit_temperature(trained.model, evaluation_batches(dataset, trained.size, workers))
    file = path / MODEL_FILE if path.is_dir() else path
    distributed.on_main(lambda: trained.save(file))
    if distributed.is_main():
        print(f"temperature {trained.temperature:.3f} is kept in {file}; it was fitted to these labels")


def _show_images(
    by_image: dict[str, Tensor],
    scores: Scores,
    models: dict[str, TrainedModel],
    dataset: SegmentationDataset,
    per_image: Path | None,
    worst: Path | None,
) -> None:
    """Write the scores of each image, and draw the worst."""
    from udas_fast.evaluation import draw_images, image_scores, worst_images, write_image_scores

    single = image_scores(by_image, dataset.classes, scores.protocol)
    if per_image is not None:
        write_image_scores(single, per_image)
        print(f"scores of {len(single)} images: {per_image}")
    if worst is not None:
        ids = worst_images(single)
        size = next(iter(models.values())).size
        draw_images({name: one.model for name, one in models.items()}, dataset, ids, size, worst)
        rows = ", ".join(f"{name} {100 * single[name].miou:.1f}" for name in ids)
        print(f"images of the lowest mIoU, %: {rows}; drawn in this order in {worst}")
