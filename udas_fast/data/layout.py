"""Places of a dataset's files: patterns of paths below its root, and a guess at those of another layout.

A pattern such as ``images/{split}/*/{id}_rgb`` names files by ``{id}``, which is the whole name without its suffix
where it is left out. ``*`` stands for part of a name and ``**`` for any number of folders; those of a label's pattern
stand for what those of the image's stand for, in their order.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from udas_fast.data.files import IMAGE_SUFFIXES
from udas_fast.data.labels import LABEL_SUFFIXES

_TOKENS = re.compile(r"\*\*/|\*|\{id\}")
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""Names that folders of a split have."""


@dataclass(frozen=True)
class Layout:
    """Patterns of images and labels below the root, with ``{split}`` as a placeholder."""

    images: str
    labels: str


@dataclass(frozen=True)
class Found:
    """A file that matches a pattern: its path, its id, and what the wildcards stand for."""

    path: Path
    id: str
    wildcards: tuple[str, ...]


def find_images(root: Path, layout: Layout, split: str) -> list[Found]:
    """Return the images of a split, sorted by id."""
    return sorted(_find(root, layout.images, split, IMAGE_SUFFIXES), key=lambda found: (found.id, found.path))


def find_labels(root: Path, layout: Layout, split: str) -> list[Found]:
    """Return the label files of a split, sorted by path."""
    return sorted(_find(root, layout.labels, split, LABEL_SUFFIXES), key=lambda found: found.path)


def label_key(found: Found, layout: Layout) -> tuple[str, tuple[str, ...]]:
    """Return what an image and its label have in common: the id, and what the wildcards of both stand for."""
    return found.id, found.wildcards[: wildcards(layout.labels)]


def label_path(root: Path, layout: Layout, split: str, image: Found) -> Path:
    """Return the path that the label of an image should have."""
    values = iter(image.wildcards)
    text, suffix = _split_suffix(_complete(layout.labels, split))
    path = _TOKENS.sub(lambda token: image.id if token[0] == "{id}" else next(values), text)
    return root / f"{path}{suffix or LABEL_SUFFIXES[0]}"


def folder_of(pattern: str, split: str) -> str:
    """Return the folder that all files of a pattern are below, relative to the root."""
    parts = PurePosixPath(_complete(pattern, split)).parts
    return "/".join(itertools.takewhile(lambda part: not _TOKENS.search(f"{part}/"), parts))


@lru_cache  # asked for each image
def wildcards(pattern: str) -> int:
    """Return the number of wildcards in a pattern."""
    return sum(token != "{id}" for token in _TOKENS.findall(_complete(pattern, "")))


def _complete(pattern: str, split: str) -> str:
    """Return a pattern with its split, ending in a file's name."""
    pattern = pattern.replace("{split}", split).rstrip("/")
    return pattern if "{id}" in pattern else f"{pattern}/{{id}}"


def _split_suffix(pattern: str) -> tuple[str, str]:
    """Split the suffix of images or labels off a pattern, ``""`` where it has none."""
    text, suffix = os.path.splitext(pattern)
    return (text, suffix) if suffix.lower() in (*IMAGE_SUFFIXES, *LABEL_SUFFIXES) else (pattern, "")


def _find(root: Path, pattern: str, split: str, suffixes: Sequence[str]) -> Iterator[Found]:
    text, suffix = _split_suffix(_complete(pattern, split))
    suffixes = (suffix.lower(),) if suffix else suffixes
    names, literals = _TOKENS.findall(text), _TOKENS.split(text)
    kinds = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "{id}": "(?P<id>[^/]+)"}
    expression = re.escape(literals[0])
    search = glob.escape(literals[0])
    for name, literal in zip(names, literals[1:], strict=True):
        expression += kinds[name] + re.escape(literal)
        search += ("*" if name == "{id}" else name) + glob.escape(literal)
    match = re.compile(expression).fullmatch
    below = (
        len(str(root / "x")) - 1
    )  # of a path in the root, which Path.relative_to finds in ten times the time
    for path in root.glob(search.rstrip("*") + "*"):  # a name, not folders
        relative, ending = os.path.splitext(str(path)[below:])
        if ending.lower() not in suffixes or os.path.basename(relative).startswith("."):
            continue
        if (found := match(relative.replace(os.sep, "/"))) is not None:
            groups = [group for i, group in enumerate(found.groups(), 1) if i != found.re.groupindex["id"]]
            yield Found(path, found["id"], tuple(groups))


# What a folder holds that is not laid out as expected.

_LABELS = re.compile(r"label|mask|annot|seg|gt|truth|class", re.IGNORECASE)
_MOST_FOLDERS = 2000


def guess(root: Path) -> str | None:
    """Return the lines of a dataset.yaml that the folders below ``root`` suggest; None without images there."""
    folders = _folders_of_images(root)
    images = [folder for folder in folders if not _LABELS.search(folder)]
    labels = [folder for folder in folders if _LABELS.search(folder)]
    if not images:
        return None
    lines = [f'images: "{_generalise(images)}"']
    if labels:
        pairs = itertools.product(images, labels)
        names = (_guess_name(folders[image], folders[label]) for image, label in pairs)
        name = next(filter(None, names), "")
        lines.append(f'labels: "{_generalise(labels)}{name and "/" + name}"')
    return " and ".join(f"`{line}`" for line in lines)


def guess_labels(images: Sequence[Path], labels: Sequence[Path]) -> str | None:
    """Return what stands for the name of a label beside an image's id, such as ``{id}_mask``; None if nothing does."""
    return _guess_name([path.stem for path in images[:20]], [path.stem for path in labels[:2000]])


def _guess_name(images: Sequence[str], labels: Sequence[str]) -> str | None:
    """Return the name of the label of an image as a pattern; None where it is the image's own, or unknown."""
    for image in images:
        for label in labels:
            if image in label and label != image:
                return label.replace(image, "{id}", 1)
    return None


def _folders_of_images(root: Path) -> dict[str, list[str]]:
    """Return the stems of images in each folder below ``root`` that has any, sorted."""
    found: dict[str, list[str]] = {}
    for number, (folder, below, names) in enumerate(os.walk(root)):
        if number >= _MOST_FOLDERS:
            break
        below.sort()
        stems = sorted(Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        if stems:
            found[Path(folder).relative_to(root).as_posix()] = stems[:20]
    return found


def _generalise(folders: Sequence[str]) -> str:
    """Return a pattern of ``folders``: ``{split}`` for the name of a split, wildcards for other parts that differ."""
    splits = {name for names in SPLIT_NAMES.values() for name in names} | {"test"}
    paths = [["{split}" if part in splits else part for part in folder.split("/")] for folder in folders]
    shared = [parts for parts in paths if "{split}" in parts] or paths
    if len({len(parts) for parts in shared}) == 1:
        columns = zip(*shared, strict=True)
        return "/".join(column[0] if len(set(column)) == 1 else "*" for column in columns)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*shared, strict=False))
    return "/".join([*(column[0] for column in same), "**"])
