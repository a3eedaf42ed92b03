"""Image files in, labels out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from udas_fast.data import IMAGE_SUFFIXES, read_image
from udas_fast.errors import bad
from udas_fast.evaluation import colorize
from udas_fast.inference.model import TrainedModel


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The image files among ``paths`` and in the folders among them, in order.

    Raises:
        InputError: a path that does not exist, a folder without images, or two images of one name.
    """
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found or not path.exists():
            raise bad(
                f"image {path}",
                "nothing" if path.exists() else "no such path",
                "an image or a folder of images",
            )
        files += found
    stems = [file.stem for file in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise bad(
            "images", f"two of the name {twice[0]!r}", "names that differ, as the results are named by them"
        )
    return files


def predict_files(trained: TrainedModel, files: Sequence[Path], out: Path) -> int:
    """Write ``NAME_ids.png`` (train ids) and ``NAME_colour.png`` for each file, at its size; the number.

    Raises:
        InputError: an image cannot be read; names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in tqdm(files, unit="image", disable=len(files) == 1):
        label, _ = trained.predict(read_image(file))
        Image.fromarray(label).save(out / f"{file.stem}_ids.png")
        Image.fromarray(colorize(label, trained.classes)).save(out / f"{file.stem}_colour.png")
    return len(files)
