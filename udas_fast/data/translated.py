"""Images of a dataset in the style of another domain, written by `udas-fast translate`: ``translated:RUN``.

``RUN/translated`` holds ``images/ID.png`` and ``manifest.json``. Labels are the original dataset's own files.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from udas_fast.data.datasets import FileDataset
from udas_fast.data.files import read_image
from udas_fast.data.specs import DatasetSpec
from udas_fast.data.types import Sample, SegmentationDataset
from udas_fast.errors import InputError, bad, unknown

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class FileRecord:
    """Size and checksum of one translated file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """Content of ``manifest.json``."""

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

    @property
    def written(self) -> dict[str, FileRecord]:
        """Records of the images that are written, by id."""
        return {name: record for name, record in self.files.items() if record is not None}


def manifest_file(run_dir: Path) -> Path:
    """Return the path of the manifest of a run's folder."""
    return run_dir / "translated" / "manifest.json"


def image_path(run_dir: Path, name: str) -> Path:
    """Return the path of the translated image with id ``name``."""
    return run_dir / "translated" / "images" / f"{name}.png"


def read_manifest(run_dir: Path) -> Manifest | None:
    """Return the manifest of a run's folder, None if there is none yet; raise InputError for a damaged one."""
    path = manifest_file(run_dir)
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


def read_complete_manifest(run_dir: Path, split: str) -> Manifest:
    """Return the manifest of a run's folder whose images of ``split`` are all written.

    Sizes of files are compared here, checksums whenever the dataset reads an image: all of them before a run and by
    `udas-fast check-data`. DALI, which decodes the files during a run, compares none.

    Raises:
        InputError: images are missing or damaged.
    """
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise bad(f"translated images of {run_dir}", "none", "the folder of a run of `udas-fast translate`")
    if split != manifest.split:
        raise unknown(f"split of translated:{run_dir}", split, (manifest.split,))
    if count := len(manifest.missing):
        total = len(manifest.files)
        raise bad(
            f"translated images of {run_dir}",
            f"{total - count} of {total} files",
            f"all: `udas-fast translate --resume {run_dir}` writes the others",
        )
    for name, record in manifest.written.items():
        path = image_path(run_dir, name)
        if not path.is_file() or path.stat().st_size != record.bytes:
            verify(path, record, run_dir)
    return manifest


def verify(path: Path, record: FileRecord, run_dir: Path) -> None:
    """Raise InputError unless the file at ``path`` is the one that was written."""
    expected = f"the file as it was written: `udas-fast translate --resume {run_dir}` writes it again"
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad(f"translated image {path}", reason, expected) from error
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise bad(f"translated image {path}", "another checksum", expected)


def check_original(original: SegmentationDataset, manifest: Manifest, run_dir: Path) -> None:
    """Raise InputError unless ``original`` has the classes and images that were translated."""
    thing = f"original dataset of translated:{run_dir} {manifest.source}"
    if original.classes.names != manifest.classes:
        found = f"classes {', '.join(original.classes.names):.60}"
        raise bad(thing, found, f"{', '.join(manifest.classes):.60}, as when it was translated")
    if [original.id(i) for i in range(len(original))] != list(manifest.files):
        found = f"{len(original)} images, not those that were translated"
        raise bad(thing, found, f"the same {len(manifest.files)} images")


def replace_images(original: SegmentationDataset, manifest: Manifest, run_dir: Path) -> SegmentationDataset:
    """Return ``original`` with the translated images of the run in ``run_dir`` and its own labels."""
    if original.spec is None:
        return TranslatedScenes(original, manifest, run_dir)
    return TranslatedFiles(original, original.spec, manifest, run_dir)


class TranslatedFiles(FileDataset):
    """Translated images with the label files of a dataset on disk."""

    def __init__(
        self, original: SegmentationDataset, spec: DatasetSpec, manifest: Manifest, run_dir: Path
    ) -> None:
        samples = [original.files(i) for i in range(len(original))]
        super().__init__(spec, [replace(sample, image=image_path(run_dir, sample.id)) for sample in samples])
        self.name = f"{original.name}-translated"
        self.records, self.run_dir = manifest.written, run_dir

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label; raise InputError if the image has changed."""
        files = self.samples[index]
        verify(files.image, self.records[files.id], self.run_dir)
        return super().unlabelled(index)


class TranslatedScenes(SegmentationDataset):
    """Translated images with the labels of a dataset that renders its scenes (Streets)."""

    on_disk = True

    def __init__(self, original: SegmentationDataset, manifest: Manifest, run_dir: Path) -> None:
        self.name = f"{original.name}-translated"
        self.classes = original.classes
        self.original = original
        self.records, self.run_dir = manifest.written, run_dir

    def __len__(self) -> int:
        return len(self.original)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.unlabelled(index), label=self.original[index].label)

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label; raise InputError if the image has changed."""
        name = self.id(index)
        path = image_path(self.run_dir, name)
        verify(path, self.records[name], self.run_dir)
        return Sample(read_image(path), None, name)

    def id(self, index: int) -> str:
        """Return the id of sample ``index``."""
        return self.original.id(index)
