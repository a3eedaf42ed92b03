"""A dataset's images in another domain's look, as `udas-fast translate` wrote them: ``translated:RUN``.

``RUN/translated`` holds ``images/ID.png`` and ``manifest.json``. Labels are the original dataset's own files.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from udas_fast.data.datasets import FileDataset, open_dataset
from udas_fast.data.files import read_image
from udas_fast.data.types import Sample, SegmentationDataset
from udas_fast.errors import InputError, bad, unknown

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class FileRecord:
    """One translated file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """What ``manifest.json`` holds."""

    source: str  # the original dataset, KIND:ROOT
    split: str
    size: tuple[int, int] | None  # render size (H, W) of an original without files
    classes: tuple[str, ...]
    generator: str  # SHA-256 of the generator's weights
    files: dict[str, FileRecord | None]  # by id, in the original's order; None: not written yet

    @property
    def missing(self) -> list[str]:
        """Ids of the images that are not written yet."""
        return [name for name, record in self.files.items() if record is None]


def manifest_file(run: Path) -> Path:
    """Where the manifest of a run's folder is, once there is one."""
    return run / "translated" / "manifest.json"


def read_manifest(run: Path) -> Manifest | None:
    """The manifest of a run's folder, None where there is none yet; InputError for a damaged one."""
    path = manifest_file(run)
    try:
        manifest = TypeAdapter(Manifest).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    if outside := [
        name
        for name in manifest.files
        if Path(name).name != name or name in ("", "..") or "\0" in name or len(name.encode()) > 250
    ]:
        raise bad(f"{path}: id", repr(outside[0]), "the name of an image, without a folder")
    if manifest.source.startswith("translated:"):
        raise bad(f"{path}: source", manifest.source, "an original dataset")
    return manifest


def image_path(run: Path, name: str) -> Path:
    """Where the translated image of id ``name`` is."""
    return run / "translated" / "images" / f"{name}.png"


def verify(path: Path, record: FileRecord, run: Path) -> None:
    """Raise InputError unless the file at ``path`` is the one that was written."""
    again = f"the file as it was written: `udas-fast translate --resume {run}` makes it again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise bad(f"translated image {path}", error.strerror.lower(), again) from error
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise bad(f"translated image {path}", "another checksum", again)


def open_translated(run: Path, split: str, labelled: bool) -> SegmentationDataset:
    """The translated images of the run in folder ``run``; :func:`udas_fast.data.open_dataset` calls this.

    Sizes of files are compared here, checksums whenever the dataset reads an image: all of them before a run and by
    `udas-fast check-data`. DALI, which decodes the files during one, compares none.
    Raises InputError where images are missing or damaged, or the original dataset is gone or not the same.
    """
    manifest = read_manifest(run)
    if manifest is None:
        raise bad(f"translated images of {run}", "none", "the folder of a run of `udas-fast translate`")
    if split != manifest.split:
        raise unknown(f"split of translated:{run}", split, (manifest.split,))
    if count := len(manifest.missing):
        total = len(manifest.files)
        raise bad(
            f"translated images of {run}",
            f"{total - count} of {total} files",
            f"all: `udas-fast translate --resume {run}` makes the others",
        )
    for name, record in manifest.files.items():
        path = image_path(run, name)
        if not path.is_file() or path.stat().st_size != record.bytes:
            verify(path, record, run)
    original = _open_original(manifest, run, labelled)
    if original.description is None:
        return TranslatedScenes(original, manifest, run)
    return TranslatedFiles(original, manifest, run)


def _open_original(manifest: Manifest, run: Path, labelled: bool) -> SegmentationDataset:
    what = f"original dataset of translated:{run}"
    try:
        original = open_dataset(manifest.source, manifest.split, size=manifest.size, labelled=labelled)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    if original.classes.names != manifest.classes:
        raise bad(
            f"{what} {manifest.source}",
            f"classes {', '.join(original.classes.names):.60}",
            f"{', '.join(manifest.classes):.60}, as when it was translated",
        )
    if [original.id(i) for i in range(len(original))] != list(manifest.files):
        raise bad(
            f"{what} {manifest.source}",
            f"{len(original)} images, not those that were translated",
            f"the same {len(manifest.files)} images",
        )
    return original


class TranslatedFiles(FileDataset):
    """Translated images with the label files of a dataset on disk."""

    def __init__(self, original: SegmentationDataset, manifest: Manifest, run: Path) -> None:
        items = [original.item(i) for i in range(len(original))]
        super().__init__(
            original.description, [replace(item, image=image_path(run, item.id)) for item in items]
        )
        self.name = f"{original.name}-translated"
        self.manifest, self.run = manifest, run

    def unlabelled(self, index: int) -> Sample:
        item = self.items[index]
        verify(item.image, self.manifest.files[item.id], self.run)
        return super().unlabelled(index)


class TranslatedScenes(SegmentationDataset):
    """Translated images with the labels of a dataset that draws its scenes (Streets)."""

    on_disk = True

    def __init__(self, original: SegmentationDataset, manifest: Manifest, run: Path) -> None:
        self.name = f"{original.name}-translated"
        self.classes = original.classes
        self.original, self.manifest, self.run = original, manifest, run

    def __len__(self) -> int:
        return len(self.original)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.unlabelled(index), label=self.original[index].label)

    def unlabelled(self, index: int) -> Sample:
        name = self.id(index)
        path = image_path(self.run, name)
        verify(path, self.manifest.files[name], self.run)
        return Sample(read_image(path), None, name)

    def id(self, index: int) -> str:
        return self.original.id(index)
