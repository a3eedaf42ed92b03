"""Datasets by name: ``KIND:ROOT`` opens a folder in a known format, Streets or translated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

from udas_fast.data import own_format
from udas_fast.data.bit_depth import check_bit_depth
from udas_fast.data.datasets import FileDataset, Unlabelled
from udas_fast.data.files import IMAGE_SUFFIXES, find_bit_depth
from udas_fast.data.labels import LABEL_SUFFIXES
from udas_fast.data.layout import (
    SPLIT_NAMES,
    Found,
    Layout,
    find_images,
    find_labels,
    folder_of,
    guess,
    guess_labels,
    label_key,
    label_path,
)
from udas_fast.data.specs import DATASETS, DatasetSpec
from udas_fast.data.streets import Streets
from udas_fast.data.task import TaskClasses, with_classes
from udas_fast.data.translated import check_original, read_complete_manifest, replace_images
from udas_fast.data.types import SampleFiles, SegmentationDataset
from udas_fast.errors import InputError, bad, unknown

KINDS = (*DATASETS, *own_format.PRESETS, "folder", "streets", "translated")
LabelsNeeded: TypeAlias = bool | Literal["some"]
"""Labels that a dataset is opened with: one for each image, none, or ``"some"``: those that are there."""


def open_dataset(
    name: str,
    split: str,
    *,
    size: tuple[int, int] | None = None,
    labelled: LabelsNeeded = True,
    bit_depth: int | None = None,
    classes: TaskClasses | None = None,
) -> SegmentationDataset:
    """Open ``KIND:ROOT``, with KIND one of :data:`KINDS`, for example ``camvid:ROOT`` or ``streets:sim``.

    ``size`` is the render size (H, W) of Streets; files keep their native size. ``labelled=False`` neither needs
    nor opens labels; with ``"some"`` an image without a label is unlabelled. ``bit_depth`` is that of the sensor whose
    images are files of 16 bits; None: the least that holds the pixels of some images of all splits. ``classes`` names
    the classes of a task and those of the dataset that they are, such as ``{"vehicle": ("car", "bus")}``; others are
    ignored.

    Raises:
        InputError: the kind is unknown, or a folder, the images or the label of an image is missing.
    """
    for thing, value in (("dataset", name), ("split", split)):
        if not isinstance(value, str):
            raise bad(thing, type(value).__name__, "text, such as 'folder:DATA/real' and 'train'")
    check_bit_depth(bit_depth)
    return with_classes(_open(name, split, size, labelled, bit_depth), classes)


def _open(
    name: str, split: str, size: tuple[int, int] | None, labelled: LabelsNeeded, bit_depth: int | None
) -> SegmentationDataset:
    """Open a dataset with its own classes."""
    kind, colon, root = name.partition(":")
    if not colon or not root:
        raise bad("dataset", repr(name), f"KIND:ROOT with KIND one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise unknown("kind of dataset", kind, KINDS)
    if kind == "streets":
        return _open_streets(root, split, size, labelled)
    if kind == "translated":
        return _open_translated(Path(root).expanduser(), split, labelled)
    spec, folder = _spec(kind, root)
    place = _locate(spec, folder, split)
    samples = _find_samples(spec, place, labelled)
    if bit_depth is None:
        bit_depth = find_bit_depth(_images_of_all_splits(place))
    spec = replace(spec, bit_depth=bit_depth)
    return FileDataset(spec, samples)


def has_labels(name: str, split: str) -> bool:
    """Return whether ``KIND:ROOT`` has a folder of labels for ``split``; False if its kind has no such split.

    Raises:
        InputError: as :func:`open_dataset` for an unknown kind or a missing root.
    """
    if not isinstance(name, str):
        open_dataset(name, split)  # raises
    kind, _, root = name.partition(":")
    if kind in ("streets", "translated"):
        return True
    if kind not in KINDS or not root:
        open_dataset(name, split)  # raises
    spec, folder = _spec(kind, root)
    try:
        place = _locate(spec, folder, split)
    except InputError:
        if spec.split_names.get(split, "").endswith(".txt"):  # a list that is named and cannot be read
            raise
        return False
    return (folder / folder_of(place.layout.labels, place.folder)).is_dir()


def unmatched_labels(name: str, split: str) -> list[Path]:
    """Return the label files of ``KIND:ROOT`` that belong to no image, in order; none of a kind without files.

    Raises:
        InputError: as :func:`open_dataset`.
    """
    kind, _, root = name.partition(":")
    if kind not in KINDS or kind in ("streets", "translated"):
        return []
    spec, folder = _spec(kind, root)
    place = replace(_locate(spec, folder, split), ids=None)
    matched = {sample.label for sample in _find_samples(spec, place, "some")}
    labels = [found.path for found in find_labels(folder, place.layout, place.folder)]
    return [path for path in labels if path not in matched]


def describe_kinds() -> list[tuple[str, str]]:
    """Return each kind of dataset with what is read below its root."""
    specs = {**DATASETS, **{name: own_format.preset_spec(name, Path(name)) for name in own_format.PRESETS}}
    rows = [
        (name, f"{len(spec.classes)} classes, {spec.layouts[0].images}, {spec.layouts[0].labels}")
        for name, spec in specs.items()
    ]
    own = f"your own: images/SPLIT, labels/SPLIT and classes.txt, or as {own_format.FILE} says"
    return [
        *rows,
        ("folder", own),
        ("streets", "procedural scenes without files: streets:sim and streets:real"),
        ("translated", "the folder of a run of `udas-fast translate`"),
    ]


def names_of(labels: Sequence[Path], dataset: SegmentationDataset) -> str:
    """Return the line of a dataset.yaml by which ``labels`` may belong to the images of ``dataset``; empty if none."""
    images = [dataset.files(i).image for i in range(min(len(dataset), 20))] if labels else []
    name = guess_labels(images, labels)
    return "" if name is None else f'; in {own_format.FILE}: `labels: "labels/{{split}}/{name}"`'


def published_ids(name: str) -> list[str]:
    """Return the ids in the published list ``name``, a file of ``udas_fast/data/splits``, in its order."""
    return (Path(__file__).with_name("splits") / name).read_text(encoding="utf-8").split()


def _spec(kind: str, root: str) -> tuple[DatasetSpec, Path]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise bad(f"root of {kind}", f"no folder {folder}", "the folder of the dataset")
    if kind in DATASETS:
        return DATASETS[kind], folder
    if kind in own_format.PRESETS:
        return own_format.preset_spec(kind, folder), folder
    return own_format.folder_spec(folder), folder


def _open_streets(
    style: str, split: str, size: tuple[int, int] | None, labelled: LabelsNeeded
) -> SegmentationDataset:
    streets = Streets(style, split) if size is None else Streets(style, split, size=size)
    return streets if labelled else Unlabelled(streets)


def _open_translated(run_dir: Path, split: str, labelled: LabelsNeeded) -> SegmentationDataset:
    manifest = read_complete_manifest(run_dir, split)
    try:
        original = open_dataset(manifest.source, manifest.split, size=manifest.size, labelled=labelled)
    except InputError as error:
        raise InputError(f"original dataset of translated:{run_dir}: {error}") from error
    check_original(original, manifest, run_dir)
    return replace_images(original, manifest, run_dir)


@dataclass(frozen=True)
class _Place:
    """Place of a split: the layout and the folder's name that ``{split}`` stands for; ``ids``: only these images."""

    root: Path
    layout: Layout
    folder: str
    ids: tuple[str, ...] | None = None
    origin: str = ""  # of the ids


def _locate(spec: DatasetSpec, root: Path, split: str) -> _Place:
    """Return where the files of a split are; raise InputError where there is no such split."""
    if spec.splits and split not in spec.splits:
        raise unknown(f"split of {spec.name}", split, spec.splits)
    told, ids, origin = spec.split_names.get(split), None, ""
    names: Sequence[str] = SPLIT_NAMES.get(split, (split,)) if told is None else (told,)
    if split in spec.split_lists:
        origin = f"{spec.name}-{split}.txt"
        ids, names = tuple(published_ids(origin)), (spec.split_lists[split],)
    elif told is not None and told.endswith(".txt"):
        origin, names = str(root / told), SPLIT_NAMES.get(split, (split,))
        ids = tuple(_listed_ids(root / told))
    for name in names:
        for layout in spec.layouts:
            if (root / folder_of(layout.images, name)).is_dir():
                return _Place(root, layout, name, ids, origin)
    raise _no_folder(spec, root, split, names[0])


def _no_folder(spec: DatasetSpec, root: Path, split: str, name: str) -> InputError:
    """Return an InputError about a split without a folder of images, with the nearest or what is there instead."""
    pattern = spec.layouts[0].images
    folder = root / folder_of(pattern, name)
    if "{split}" in pattern and folder.parent.is_dir():
        found = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if found:
            return unknown(f"split of {spec.name} in {folder.parent}", split, found)
    return bad(
        f"{spec.name} {split}", f"no folder {folder}", f"the folder of images{_or_a_guess(spec, root)}"
    )


def _or_a_guess(spec: DatasetSpec, root: Path) -> str:
    """Return the lines of a dataset.yaml that may be right for a folder that is laid out otherwise."""
    lines = guess(root) if spec.name == "folder" else None
    return f", or in {root / own_format.FILE} where they are, such as {lines}" if lines else ""


def _find_samples(spec: DatasetSpec, place: _Place, labelled: LabelsNeeded) -> list[SampleFiles]:
    """Return the samples of a split, sorted by id, or in the order of its list."""
    root, layout, split = place.root, place.layout, place.folder
    images = _find_images(place)
    if not images:
        endings = ", ".join(IMAGE_SUFFIXES)
        folder = root / folder_of(layout.images, split)
        expected = f"files {Path(layout.images).name} of {endings}{_or_a_guess(spec, root)}"
        raise bad(f"{spec.name} {split}", f"no images in {folder}", expected)
    if place.ids is not None:
        images = _select_listed(images, place.ids, place.origin)
    if not labelled:
        return [SampleFiles(image.id, image.path, None) for image in images]
    folder = root / folder_of(layout.labels, split)
    if not folder.is_dir() and labelled != "some":
        expected = f"one label for each image{_or_a_guess(spec, root)}"
        raise bad(f"labels of {spec.name} {split}", f"no folder {folder}", expected)
    labels = _by_key(find_labels(root, layout, split))
    samples = [SampleFiles(image.id, image.path, labels.get(label_key(image, layout))) for image in images]
    unlabelled = [i for i, sample in enumerate(samples) if sample.label is None]
    if labelled == "some" or not unlabelled:
        return samples
    first, others = images[unlabelled[0]], len(unlabelled) - 1
    more = f" (and {others} more without one)" if others else ""
    found = f"no label {label_path(root, layout, split, first)}{more}"
    raise bad(f"image {first.path}", found, f"one label for each image{_other_names(place, images)}")


def _other_names(place: _Place, images: Sequence[Found]) -> str:
    """Return the line of a dataset.yaml that names labels after their images, or what is wrong with the files."""
    folder = place.root / folder_of(place.layout.labels, place.folder)
    there = sorted(path for path in folder.glob("*") if path.is_file())
    labels = [path for path in there if path.suffix.lower() in LABEL_SUFFIXES]
    if there and not labels:
        return (
            f", a file {', '.join(LABEL_SUFFIXES)}: {there[0].name} is none, and a lossy format changes ids"
        )
    if (name := guess_labels([image.path for image in images], labels)) is None:
        return ""
    pattern = f"{place.layout.labels.removesuffix('/{id}')}/{name}"
    return f', or in {place.root / own_format.FILE} how they are named, such as `labels: "{pattern}"`'


def _by_key(labels: Sequence[Found]) -> dict[tuple[str, tuple[str, ...]], Path]:
    """Return label files by what they have in common with their image; raise InputError for two of one image."""
    found: dict[tuple[str, tuple[str, ...]], Path] = {}
    for label in labels:
        if (other := found.setdefault((label.id, label.wildcards), label.path)) != label.path:
            raise bad(
                f"label {label.path}", f"another label of that name, {other}", "one label for each image"
            )
    return found


def _images_of_all_splits(place: _Place) -> list[Path]:
    """Return the images of a dataset, so that all of its splits have one bit depth."""
    return sorted(found.path for found in find_images(place.root, place.layout, "*"))


def _find_images(place: _Place) -> list[Found]:
    """Return the images of a split, sorted by id; raise InputError if two files have one id."""
    images = find_images(place.root, place.layout, place.folder)
    for one, other in pairwise(images):
        if one.id == other.id:
            found = f"another image of that name, {one.path}"
            raise bad(f"image {other.path}", found, "one image for each name")
    return images


def _listed_ids(path: Path) -> list[str]:
    """Return the ids, or names of images, in a list with one on each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
        raise bad(f"list of images {path}", str(why).lower(), "an id on each line") from error
    names = [Path(line.strip()).name for line in lines if line.strip()]
    return [Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name for name in names]


def _select_listed(images: list[Found], ids: Sequence[str], origin: str) -> list[Found]:
    """Return the images in a list, in its order."""
    by_id = {image.id: image for image in images}
    if missing := [i for i in ids if i not in by_id]:
        found = f"no {missing[0]} ({len(missing)} of {len(ids)} missing)"
        raise bad(f"images of {origin}", found, "all of the list")
    if not ids:
        raise bad(f"images of {origin}", "no id", "an id on each line")
    return [by_id[i] for i in ids]
