"""Datasets on disk, opened by name, and views of datasets: fixed labelled subsets, images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from udas_fast.data.files import IMAGE_SUFFIXES, LABEL_SUFFIX, IdMap, read_ids, read_image
from udas_fast.data.sampler import labelled_subset
from udas_fast.data.specs import DATASETS, DatasetSpec, Layout, describe_folder
from udas_fast.data.types import Item, Sample, SegmentationDataset
from udas_fast.errors import InputError, bad, unknown

KINDS = (*DATASETS, "folder", "streets", "translated")


class FileDataset(SegmentationDataset):
    """Images and labels on disk as a :class:`DatasetSpec` tells; files are opened when a sample is read."""

    on_disk = True

    def __init__(self, description: DatasetSpec, items: Sequence[Item]) -> None:
        self.name = description.name
        self.classes = description.classes
        self.description = description
        self.items = tuple(items)
        self.id_map = IdMap(description.ids)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        sample, path = self.unlabelled(index), self.items[index].label
        if path is None:
            return sample
        ids = read_ids(path, wide=self.description.wide)
        check_sizes(path, ids.shape, sample.image.shape[:2])
        return Sample(sample.image, self.id_map(ids, path), sample.id)

    def unlabelled(self, index: int) -> Sample:
        item = self.items[index]
        return Sample(read_image(item.image), None, item.id)

    def id(self, index: int) -> str:
        return self.items[index].id

    def item(self, index: int) -> Item:
        return self.items[index]


def check_sizes(path: Path, label: tuple[int, int], image: tuple[int, int]) -> None:
    """Raise InputError where the label at ``path`` has not the (H, W) of its image."""
    if label != image:
        found, expected = (f"{width}x{height}" for height, width in (label, image))
        raise bad(f"label {path}", f"{found} pixels", f"the {expected} of its image")


class Subset(SegmentationDataset):
    """The samples ``indices`` of ``dataset``, in their order there."""

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        self.name = dataset.name
        self.classes = dataset.classes
        self.on_disk = dataset.on_disk
        self.description = dataset.description
        self.dataset = dataset
        self.indices = sorted(int(i) for i in indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def id(self, index: int) -> str:
        return self.dataset.id(self.indices[index])

    def item(self, index: int) -> Item:
        return self.dataset.item(self.indices[index])

    def unlabelled(self, index: int) -> Sample:
        return self.dataset.unlabelled(self.indices[index])


class Unlabelled(SegmentationDataset):
    """The same images; the labels are None and their files are never opened."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.name = dataset.name
        self.classes = dataset.classes
        self.on_disk = dataset.on_disk
        self.description = dataset.description
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.unlabelled(index)

    def id(self, index: int) -> str:
        return self.dataset.id(index)

    def item(self, index: int) -> Item:
        return replace(self.dataset.item(index), label=None)


def with_labels(dataset: SegmentationDataset) -> SegmentationDataset | None:
    """``dataset`` with the labels that :class:`Unlabelled` hides, or None where the first image has none to read.

    For reports on what training made of the images, never for training: nobody has checked these files.
    """
    if isinstance(dataset, Subset):
        whole = with_labels(dataset.dataset)
        return None if whole is None else Subset(whole, dataset.indices)
    whole = dataset.dataset if isinstance(dataset, Unlabelled) else dataset
    try:
        return whole if whole[0].label is not None else None
    except InputError:
        return None


def subset(dataset: SegmentationDataset, n: int, seed: int = 0) -> Subset:
    """``n`` samples: the first of one permutation that depends on ``seed`` only, so 20 ⊂ 50 ⊂ 100.

    Raises InputError where the dataset holds fewer.
    """
    if not 1 <= n <= len(dataset):
        raise bad(f"labelled images of {dataset.name}", n, f"1 to {len(dataset)}, which is all there are")
    return Subset(dataset, labelled_subset(len(dataset), n, seed))


def open_dataset(
    spec: str, split: str, *, size: tuple[int, int] | None = None, labelled: bool = True
) -> SegmentationDataset:
    """Open ``KIND:ROOT``, with KIND one of :data:`KINDS`, for example ``camvid:ROOT`` or ``streets:sim``.

    ``size`` is Streets' render size (H, W); files keep their native size. ``labelled=False`` neither needs
    nor opens labels. Raises InputError where the kind, a folder, the images or one image's label is missing.
    """
    kind, colon, root = spec.partition(":")
    if not colon or not root:
        raise bad("dataset", repr(spec), f"KIND:ROOT with KIND one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise unknown("kind of dataset", kind, KINDS)
    if kind == "streets":
        return _open_streets(root, split, size, labelled)
    if kind == "translated":
        from udas_fast.data.translated import open_translated  # which opens the original dataset from here

        return open_translated(Path(root).expanduser(), split, labelled)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise bad(f"root of {kind}", f"no folder {folder}", "the dataset's folder")
    description = DATASETS[kind] if kind in DATASETS else describe_folder(folder)
    if description.splits and split not in description.splits:
        raise unknown(f"split of {kind}", split, description.splits)
    items = _find(description, folder, description.parts.get(split, split), labelled)
    if split in description.parts:
        items = _listed(items, f"{description.name}-{split}.txt")
    return FileDataset(description, items)


def has_labels(spec: str, split: str) -> bool:
    """Whether ``KIND:ROOT`` has a folder of labels for ``split``; False where its kind has no such split.

    Raises InputError where the kind or the root is not as :func:`open_dataset` wants it.
    """
    kind, _, root = spec.partition(":")
    if kind in ("streets", "translated"):
        return True
    folder = Path(root).expanduser()
    if kind not in KINDS or not folder.is_dir():
        open_dataset(spec, split)  # which tells what is wrong
    description = DATASETS[kind] if kind in DATASETS else describe_folder(folder)
    if description.splits and split not in description.splits:
        return False
    on_disk = description.parts.get(split, split)
    return any((folder / layout.labels.format(split=on_disk)).is_dir() for layout in description.layouts)


def _open_streets(
    style: str, split: str, size: tuple[int, int] | None, labelled: bool
) -> SegmentationDataset:
    from udas_fast.data.streets import Streets

    streets = Streets(style, split) if size is None else Streets(style, split, size=size)
    return streets if labelled else Unlabelled(streets)


def _find(description: DatasetSpec, root: Path, split: str, labelled: bool) -> list[Item]:
    """The items of a split, sorted by id."""
    layout = _choose_layout(description, root, split)
    folder = root / layout.images.format(split=split)
    images = _images(folder, layout)
    if not images:
        endings = ", ".join(f"{'*/' * layout.depth}*{layout.image_ending}{end}" for end in IMAGE_SUFFIXES)
        raise bad(f"{description.name} {split}", f"no images in {folder}", f"files {endings}")
    if not labelled:
        return [Item(name, path, None) for name, path in images.items()]
    labels = root / layout.labels.format(split=split)
    if not labels.is_dir():
        raise bad(f"labels of {description.name} {split}", f"no folder {labels}", "one label for each image")
    items = []
    for name, path in images.items():
        label = labels / path.parent.relative_to(folder) / f"{name}{layout.label_ending}{LABEL_SUFFIX}"
        items.append(Item(name, path, label))
    there = set(labels.glob(f"{'*/' * layout.depth}*{LABEL_SUFFIX}"))
    lost = [item for item in items if item.label not in there]
    if lost:
        more = f" (and {len(lost) - 1} more without one)" if len(lost) > 1 else ""
        raise bad(f"image {lost[0].image}", f"no label {lost[0].label}{more}", "one label for each image")
    return items


def published_ids(name: str) -> list[str]:
    """The ids in the published list ``name``, a file of ``udas_fast/data/splits``, in its order."""
    return (Path(__file__).with_name("splits") / name).read_text(encoding="utf-8").split()


def _listed(items: list[Item], name: str) -> list[Item]:
    """Those of ``items`` that the published list ``name`` names, in its order."""
    by_id = {item.id: item for item in items}
    ids = published_ids(name)
    if lost := [i for i in ids if i not in by_id]:
        raise bad(f"images of {name}", f"no {lost[0]} ({len(lost)} of {len(ids)} missing)", "all of the list")
    return [by_id[i] for i in ids]


def _choose_layout(description: DatasetSpec, root: Path, split: str) -> Layout:
    for layout in description.layouts:
        if (root / layout.images.format(split=split)).is_dir():
            return layout
    folder = root / description.layouts[0].images.format(split=split)
    if not description.splits and folder.parent.is_dir():
        there = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if there:
            raise unknown(f"split of {description.name} in {folder.parent}", split, there)
    raise bad(f"{description.name} {split}", f"no folder {folder}", "the folder of images")


def _images(folder: Path, layout: Layout) -> dict[str, Path]:
    """Id → image file, sorted by id; raises InputError where two files have one id."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/" * layout.depth + "*")):
        name = path.stem.removesuffix(layout.image_ending)
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if not path.stem.endswith(layout.image_ending):
            continue
        if name in found:
            raise bad(
                f"image {path}", f"another image of that name, {found[name]}", "one image for each name"
            )
        found[name] = path
    return dict(sorted(found.items()))
