"""Commands on runs and trained models: ``evaluate``, ``predict``, ``export``, ``report``, ``watch`` and ``compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from udas_fast.cli.options import (
    KINDS,
    OUT,
    SIZE,
    BitDepth,
    Device,
    Json,
    Model,
    Network,
    Split,
    TaskFile,
    Workers,
    parse_size,
    parse_views,
    read_network,
    write_json,
)
from udas_fast.errors import InputError, bad

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from udas_fast.data import SegmentationDataset
    from udas_fast.evaluation import Scores
    from udas_fast.inference import TrainedModel


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL", help="a run's folder or a model.safetensors; of several the mean is scored"
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
    place = join(device)
    loaded = [_load(model, network, place) for model in models]
    trained = loaded[0]
    _require_alike(models, loaded)
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
        if len(models) > 1:
            raise bad("--calibrate", f"{len(models)} models", "one, in whose file the temperature is kept")
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
            _show_images(
                by_image, scores, dict(zip(map(str, models), loaded, strict=True)), dataset, per_image, worst
            )
    leave()


def _require_alike(paths: list[Path], loaded: list[TrainedModel]) -> None:
    """Raise InputError for models whose softmaxes have no mean: of other classes, or for images of another size."""
    first = loaded[0]
    for path, other in zip(paths, loaded, strict=True):
        if difference := other.classes.first_difference(first.classes):
            raise bad(f"classes of {path}", difference, f"those of {paths[0]}")
        if other.size != first.size:
            raise bad(f"size of {path}", other.size, f"{first.size}, that of {paths[0]}")


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


def predict(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="images, folders of images, which are walked into, videos"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(*OUT, metavar="FOLDER", help="folder for NAME_ids.png, NAME_colour.png and so on"),
    ] = None,
    write: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help="pictures of each image: ids, cityscapes_ids, colour, overlay, confidence",
        ),
    ] = "ids,colour",
    films: Annotated[
        bool, typer.Option("--film", help="a film of each picture of a video, in place of its frames")
    ] = False,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--as-dataset",
            metavar="FOLDER",
            help="images and labels as a dataset, which folder:FOLDER reads and labelling tools do",
        ),
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="P", help="with --as-dataset: pixels below are 255, not labelled"),
    ] = 0.0,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="confidence, entropy and share of each class of every image, as CSV"
        ),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="show images at their own size, not at the one of training")
    ] = False,
    tile: Annotated[
        str | None,
        typer.Option(metavar=SIZE, help="label large images in overlapping parts of this size, one by one"),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="decode images of up to N pixels whole; 178956970 unless given, as Pillow does",
        ),
    ] = None,
    bit_depth: BitDepth = None,
    network: Network = None,
    device: Device = "auto",
) -> None:
    """Label images, folders and videos.

    Train ids, colours and more as PNG files, at each image's own size; films, a dataset or a table.
    """
    from udas_fast.distributed import resolve_device
    from udas_fast.inference import DatasetFolder, Output, Pictures, Table, media_files, predict_files

    if out is None and dataset is None and table is None:
        raise bad("predict", "none of them", "--out, --as-dataset or --table")
    if films and out is None:
        raise bad("--film", "no --out", "the folder of the films")
    if min_confidence and dataset is None:
        raise bad("--min-confidence", "no --as-dataset", "the dataset whose labels it drops")
    files = media_files(images, out, dataset)
    parts = None if tile is None else parse_size(tile, "--tile")
    trained = _load(model, network, resolve_device(device))
    trained.bit_depth = bit_depth or trained.bit_depth
    outputs: list[Output] = []
    if out is not None:
        outputs.append(Pictures(out, write.split(","), trained.classes, films=films))
    if dataset is not None:
        outputs.append(DatasetFolder(dataset, trained.classes, min_confidence))
    if table is not None:
        outputs.append(Table(table, trained.classes))
    done = predict_files(trained, files, outputs, native=native, tile=parts, max_pixels=max_pixels)
    places = ", ".join(str(place) for place in (out, dataset, table) if place is not None)
    print(f"{done.images} image{'s' * (done.images != 1)} labelled in {places}")
    if done.problems:
        raise InputError(
            f"predict: {len(done.problems)} of {len(files)} files cannot be read, the others are labelled"
        )


def export(
    model: Model,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="torch (torch.export, .pt2) or onnx")],
    out: Annotated[
        Path,
        typer.Option(
            *OUT, metavar="FILE", help="the file, NAME.pt2 or NAME.onnx; NAME.….json beside it describes it"
        ),
    ],
    network: Network = None,
) -> None:
    """Write a trained model for use without udas_fast.

    It takes uint8 images of any size and returns logits, which are compared with the original model's.
    """
    from udas_fast.inference import export_model

    print(f"{out}: {export_model(_load(model, network), out, form)}")


def _load(path: Path, network: str | None, device: torch.device | str = "cpu") -> TrainedModel:
    """Read a model, built by the function of --network, and say on stderr where it is not the last of its run."""
    from udas_fast import distributed
    from udas_fast.inference import TrainedModel

    trained = TrainedModel.load(path, device, read_network(network)[0])
    if trained.selected is not None and distributed.is_main():
        print(f"NOTICE: {path} is not the last model of its run: {trained.selected}", file=sys.stderr)
    return trained


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS", help="folders of runs, also unfinished ones")],
    out: Annotated[
        Path | None,
        typer.Option(*OUT, metavar="FILE", help="file of the page; for one run RUN/report.html by default"),
    ] = None,
) -> None:
    """Write one HTML page about one or more runs.

    Curves, scores, pictures and speed, with several runs side by side; the page needs no network.
    """
    from udas_fast.tools.report import write_report

    print(write_report(runs, out))


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")],
    once: Annotated[bool, typer.Option("--once", help="print the state as it is now and end")] = False,
) -> None:
    """Follow a run in the terminal.

    Step, losses, rate, time left, scores and images, until the run is complete or Ctrl-C.
    """
    from udas_fast.tools.report import watch_run

    watch_run(run, once=once)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS", help="folders of two or more runs")],
    json_file: Json = None,
) -> None:
    """Print the final scores of runs side by side.

    With their differences to the first, and whether they compare.
    """
    from udas_fast.tools.report import compare_runs

    text, document = compare_runs(runs)
    print(text)
    write_json(document, json_file)
