"""The command ``rank``: which images to label next, and which labels to doubt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from udas_fast.cli.options import (
    KINDS,
    OUT,
    BitDepth,
    Device,
    Network,
    Split,
    TaskFile,
    load_model,
    one_of,
    require_alike,
)
from udas_fast.errors import bad

if TYPE_CHECKING:
    from torch import Tensor

    from udas_fast.data import SegmentationDataset

MOST_DRAWN = 24


def rank(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL", help="a run's folder, a model.safetensors or an exported .onnx; several disagree"
        ),
    ],
    data: Annotated[str, typer.Option(metavar="KIND:ROOT", help=f"KIND is one of {KINDS}")],
    out: Annotated[
        Path, typer.Option(*OUT, metavar="FOLDER", help="folder for next.txt, rank.csv and sheet.png")
    ],
    by: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="uncertainty, disagreement, rare, or doubt (of labels that are there)"
        ),
    ] = "uncertainty",
    count: Annotated[int, typer.Option("--n", min=1, metavar="N", help="images to choose")] = 50,
    is_spread: Annotated[
        bool, typer.Option("--spread", help="choose images that differ, not 50 frames of one drive")
    ] = False,
    split: Split = "train",
    bit_depth: BitDepth = None,
    classes: TaskFile = None,
    network: Network = None,
    device: Device = "auto",
) -> None:
    """Choose images to label next, or labels to check.

    Images without labels are ranked, and with `--by doubt` those with labels. `train --num-labels OUT/next.txt` takes
    the list once they are labelled.
    """
    from tqdm import tqdm

    from udas_fast.atomic import make_folder
    from udas_fast.data import open_dataset, read_task, with_classes
    from udas_fast.data.labelled import with_label
    from udas_fast.distributed import resolve_device
    from udas_fast.evaluation import draw_images
    from udas_fast.inference.ranking import BY, rank_images, spread_out, write_ranking

    score = one_of("--by", by, BY)
    place = resolve_device(device)
    loaded = [load_model(model, network, place) for model in models]
    require_alike(models, loaded)
    trained = loaded[0]
    depth = bit_depth or trained.bit_depth
    dataset = open_dataset(data, split, labelled="some", size=trained.size, bit_depth=depth)
    dataset = with_classes(dataset, None if classes is None else read_task(classes))
    if difference := dataset.classes.first_difference(trained.classes):
        raise bad(f"dataset {data}", difference, "the model's classes; --classes FILE makes them of others")
    labelled = set(with_label(dataset))
    indices = [i for i in range(len(dataset)) if (i in labelled) == (score == "doubt")]
    if not indices:
        found = "no image with a label" if score == "doubt" else "a label for every image"
        raise bad(f"{data} {split}", found, f"images to rank by {score}")
    make_folder(out)
    rarity = _rarity(dataset, sorted(labelled)) if score == "rare" else None
    with tqdm(total=len(indices), unit="image", leave=False, disable=None) as bar:
        ranked = rank_images(loaded, dataset, indices, score, rarity=rarity, progress=bar.update)
    chosen = spread_out(ranked, count) if is_spread else ranked[:count]
    write_ranking(ranked, chosen, score, out)
    drawn = [one.id for one in chosen[:MOST_DRAWN]]
    titles = [f"prediction {i + 1}" for i in range(len(loaded))] if len(loaded) > 1 else ["prediction"]
    named = {title: one.model for title, one in zip(titles, loaded, strict=True)}
    draw_images(named, dataset, drawn, trained.size, out / "sheet.png")
    print(f"{len(chosen)} of {len(ranked)} images by {score}: {out / 'next.txt'}; scores: {out / 'rank.csv'}")


def _rarity(dataset: SegmentationDataset, labelled: list[int]) -> Tensor:
    """Return how rare each class is in the labels that are there."""
    import numpy as np
    import torch

    from udas_fast.inference.ranking import class_rarity

    if not labelled:
        raise bad("--by rare", "no image with a label", "some, whose rare classes are looked for")
    counts = np.zeros(256, np.int64)
    for index in labelled:
        label = dataset[index].label
        assert label is not None  # it is among the labelled
        counts += np.bincount(label.ravel(), minlength=256)
    return class_rarity(torch.from_numpy(counts[: len(dataset.classes)]))
