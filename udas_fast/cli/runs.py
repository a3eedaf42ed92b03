"""Commands on runs and trained models: ``predict``, ``export``, ``report``, ``card``, ``watch`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from udas_fast.cli.options import (
    OUT,
    SIZE,
    BitDepth,
    Device,
    Json,
    Model,
    Network,
    load_model,
    parse_size,
    write_json,
)
from udas_fast.errors import InputError, bad


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
    max_bad_files: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="files that may be unreadable without an error at the end"),
    ] = 0,
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
    trained = load_model(model, network, resolve_device(device))
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
    if len(done.problems) > max_bad_files:
        allowed = f", --max-bad-files allows {max_bad_files}" if max_bad_files else ""
        raise InputError(
            f"predict: {len(done.problems)} of {len(files)} files cannot be read{allowed}; the others are labelled"
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
    output: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="logits, logits-small (as the network gives them), labels or labels,confidence",
        ),
    ] = "logits",
    size: Annotated[
        str | None,
        typer.Option(metavar=SIZE, help="size of all images, for runtimes that need one; any unless given"),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="compute in 16 bits")] = False,
    network: Network = None,
) -> None:
    """Write a trained model for use without udas_fast.

    It takes uint8 images and returns logits or labels, which are compared with the original model's. `evaluate` scores
    an ONNX file too.
    """
    from udas_fast.inference import export_model

    fixed = None if size is None else parse_size(size, "--size")
    agreement = export_model(load_model(model, network), out, form, output=output, size=fixed, half=half)
    print(f"{out}: {agreement}")


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


def card(run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")]) -> None:
    """Write a model card into a run, RUN/README.md.

    Scores, protocol, classes and the lines that load the model, with the front matter of Hugging Face's hub.
    """
    from udas_fast.tools.card import write_card

    print(write_card(run))


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
