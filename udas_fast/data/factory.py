"""Datasets by name: ``KIND:ROOT`` opens a folder in a known format, Streets or translated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from udas_fast.data.bit_depth import check_bit_depth
from udas_fast.data.datasets import FileDataset, Unlabelled
from udas_fast.data.files import IMAGE_SUFFIXES, LABEL_SUFFIX, find_bit_depth
from udas_fast.data.specs import DATASETS, DatasetSpec, Layout, folder_spec
from udas_fast.data.streets import Streets
from udas_fast.data.translated import check_original, read_complete_manifest, replace_images
from udas_fast.data.types import SampleFiles, SegmentationDataset
from udas_fast.errors import InputError, bad, unknown

KINDS = (*DATASETS, "folder", "streets", "translated")
LabelsNeeded: TypeAlias = bool | Literal["some"]
"""Labels that a dataset is opened with: one for each image, none, or ``"some"``: those that are there."""


def open_dataset(
    name: str,
    split: str,
    *,
    size: tuple[int, int] | None = None,
    labelled: LabelsNeeded = True,
    bit_depth: int | None = None,
) -> SegmentationDataset:
    """Open ``KIND:ROOT``, with KIND one of :data:`KINDS`, for example ``camvid:ROOT`` or ``streets:sim``.

    ``size`` is the render size (H, W) of Streets; files keep their native size. ``labelled=False`` neither needs
    nor opens labels; with ``"some"`` an image without a label is unlabelled. ``bit_depth`` is that of the sensor whose
    images are files of 16 bits; None: the least that holds the pixels of some images of all splits.

    Raises:
        InputError: the kind is unknown, or a folder, the images or the label of an image is missing.
    """
    for thing, value in (("dataset", name), ("split", split)):
        if not isinstance(value, str):
            raise bad(thing, type(value).__name__, "text, such as 'folder:DATA/real' and 'train'")
    check_bit_depth(bit_depth)
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
    if spec.splits and split not in spec.splits:
        raise unknown(f"split of {kind}", split, spec.splits)
    on_disk = spec.split_lists.get(split, split)
    samples = _find_samples(spec, folder, on_disk, labelled)
    if split in spec.split_lists:
        samples = _select_listed(samples, f"{spec.name}-{split}.txt")
    if bit_depth is None:
        bit_depth = find_bit_depth(_images_of_all_splits(spec, folder, on_disk, samples))
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
    if spec.splits and split not in spec.splits:
        return False
    on_disk = spec.split_lists.get(split, split)
    return any((folder / layout.labels.format(split=on_disk)).is_dir() for layout in spec.layouts)


def unmatched_labels(name: str, split: str) -> list[Path]:
    """Return the label files of ``KIND:ROOT`` that belong to no image, in order; none of a kind without files.

    Raises:
        InputError: as :func:`open_dataset`.
    """
    kind, _, root = name.partition(":")
    if kind not in KINDS or kind in ("streets", "translated"):
        return []
    spec, folder = _spec(kind, root)
    on_disk = spec.split_lists.get(split, split)
    layout = _choose_layout(spec, folder, on_disk)
    pattern = f"{'*/' * layout.depth}*{layout.label_ending}{LABEL_SUFFIX}"
    labels = folder.glob(f"{layout.labels.format(split=on_disk)}/{pattern}")
    matched = {sample.label for sample in _find_samples(spec, folder, on_disk, "some")}
    return sorted(set(labels) - matched)


def published_ids(name: str) -> list[str]:
    """Return the ids in the published list ``name``, a file of ``udas_fast/data/splits``, in its order."""
    return (Path(__file__).with_name("splits") / name).read_text(encoding="utf-8").split()


def _spec(kind: str, root: str) -> tuple[DatasetSpec, Path]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise bad(f"root of {kind}", f"no folder {folder}", "the folder of the dataset")
    return DATASETS[kind] if kind in DATASETS else folder_spec(folder), folder


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


def _find_samples(spec: DatasetSpec, root: Path, split: str, labelled: LabelsNeeded) -> list[SampleFiles]:
    """Return the samples of a split, sorted by id."""
    layout = _choose_layout(spec, root, split)
    folder = root / layout.images.format(split=split)
    images = _find_images(folder, layout)
    if not images:
        endings = ", ".join(f"{'*/' * layout.depth}*{layout.image_ending}{end}" for end in IMAGE_SUFFIXES)
        raise bad(f"{spec.name} {split}", f"no images in {folder}", f"files {endings}")
    if not labelled:
        return [SampleFiles(name, path, None) for name, path in images.items()]
    labels = root / layout.labels.format(split=split)
    if not labels.is_dir() and labelled != "some":
        raise bad(f"labels of {spec.name} {split}", f"no folder {labels}", "one label for each image")
    samples = []
    for name, path in images.items():
        label = labels / path.parent.relative_to(folder) / f"{name}{layout.label_ending}{LABEL_SUFFIX}"
        samples.append(SampleFiles(name, path, label))
    present = set(labels.glob(f"{'*/' * layout.depth}*{LABEL_SUFFIX}"))
    if labelled == "some":
        return [sample if sample.label in present else replace(sample, label=None) for sample in samples]
    unlabelled = [sample for sample in samples if sample.label not in present]
    if unlabelled:
        first, others = unlabelled[0], len(unlabelled) - 1
        more = f" (and {others} more without one)" if others else ""
        raise bad(f"image {first.image}", f"no label {first.label}{more}", "one label for each image")
    return samples


def _images_of_all_splits(
    spec: DatasetSpec, root: Path, split: str, samples: Sequence[SampleFiles]
) -> list[Path]:
    """Return the images of a dataset, so that all of its splits have one bit depth."""
    layout = _choose_layout(spec, root, split)
    if "{split}" not in layout.images:
        return [sample.image for sample in samples]
    found = root.glob(f"{layout.images.format(split='*')}/{'*/' * layout.depth}*")
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def _choose_layout(spec: DatasetSpec, root: Path, split: str) -> Layout:
    for layout in spec.layouts:
        if (root / layout.images.format(split=split)).is_dir():
            return layout
    folder = root / spec.layouts[0].images.format(split=split)
    if not spec.splits and folder.parent.is_dir():
        found = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if found:
            raise unknown(f"split of {spec.name} in {folder.parent}", split, found)
    raise bad(f"{spec.name} {split}", f"no folder {folder}", "the folder of images")


def _find_images(folder: Path, layout: Layout) -> dict[str, Path]:
    """Return id → image file, sorted by id; raise InputError if two files have one id."""
    images: dict[str, Path] = {}
    for path in sorted(folder.glob("*/" * layout.depth + "*")):
        name = path.stem.removesuffix(layout.image_ending)
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if not path.stem.endswith(layout.image_ending):
            continue
        if name in images:
            found = f"another image of that name, {images[name]}"
            raise bad(f"image {path}", found, "one image for each name")
        images[name] = path
    return dict(sorted(images.items()))


def _select_listed(samples: list[SampleFiles], name: str) -> list[SampleFiles]:
    """Return the samples in the published list ``name``, in its order."""
    by_id = {sample.id: sample for sample in samples}
    ids = published_ids(name)
    if missing := [i for i in ids if i not in by_id]:
        found = f"no {missing[0]} ({len(missing)} of {len(ids)} missing)"
        raise bad(f"images of {name}", found, "all of the list")
    return [by_id[i] for i in ids]
