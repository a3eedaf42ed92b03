"""Mutated images, labels, class lists, folders and manifests."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mutate import mutate_bytes, mutate_tree
from PIL import Image

from udas_fast.data import open_dataset
from udas_fast.data.files import read_image
from udas_fast.data.labels import read_ids
from udas_fast.data.own_format import folder_spec
from udas_fast.data.translated import image_path, read_manifest

SIZE = (24, 32)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pixels(seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (SIZE[0] // 4, SIZE[1] // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)


def image_case(folder: Path) -> Callable[[int], None]:
    """Image files: what can be read is RGB of the size that its header says."""
    rgb = Image.fromarray(_pixels())
    grey16 = Image.fromarray(_pixels()[..., 0].astype(np.uint16) * 257)
    files = {
        "png": _encoded(rgb, "PNG"),
        "jpg": _encoded(rgb, "JPEG"),
        "progressive.jpg": _encoded(rgb, "JPEG", progressive=True),
        "cmyk.jpg": _encoded(rgb.convert("CMYK"), "JPEG"),
        "palette.png": _encoded(rgb.quantize(16), "PNG"),
        "grey16.png": _encoded(grey16, "PNG"),
        "bmp": _encoded(rgb, "BMP"),
        "webp": _encoded(rgb, "WEBP"),
        "tif": _encoded(rgb, "TIFF", compression="tiff_lzw"),
    }

    def run(seed: int) -> None:
        rng = random.Random(seed)
        name = rng.choice(sorted(files))
        path = folder / f"image.{name}"
        path.write_bytes(mutate_bytes(rng, files[name]))
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size > 0
        with Image.open(path) as header:
            assert image.shape[1::-1] == header.size

    return run


def label_case(folder: Path) -> Callable[[int], None]:
    """Label files: no byte can change unnoticed, as every checksum of a PNG is compared."""
    ids = (_pixels()[..., 0] % 12).astype(np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([i % 256 for i in range(768)])
    files = [_encoded(Image.fromarray(ids), "PNG"), _encoded(palette, "PNG")]

    def run(seed: int) -> None:
        rng = random.Random(seed)
        path = folder / "label.png"
        data = rng.choice(files)
        path.write_bytes(mutate_bytes(rng, data))
        assert np.array_equal(read_ids(path), ids)

    return run


def classes_case(folder: Path) -> Callable[[int], None]:
    """``classes.txt``: 2 to 255 different names, one for each line."""
    text = "\n".join(f"class {i}" for i in range(12)).encode()

    def run(seed: int) -> None:
        rng = random.Random(seed)
        path = folder / "classes.txt"
        lines = text.splitlines()
        for _ in range(rng.randrange(3)):
            rng.choice(
                [
                    lambda: lines.insert(rng.randrange(12), rng.choice(lines)),
                    lambda: lines.insert(rng.randrange(12), b""),
                    lambda: lines.extend(b"more %d" % i for i in range(rng.choice([3, 243, 244, 400]))),
                    lambda: lines.__delitem__(slice(rng.randrange(3), None)),
                    lambda: lines.append(b"\xef\xbb\xbfclass 1"),
                ]
            )()
        joined = rng.choice([b"\n", b"\r\n", b"\r"]).join(lines)
        path.write_bytes(mutate_bytes(rng, joined) if rng.random() < 0.7 else joined)
        classes = folder_spec(folder).classes
        assert 2 <= len(classes) <= 255
        assert len(set(classes.names)) == len(set(classes.palette)) == len(classes)
        assert all(name.strip() and name.isprintable() for name in classes.names), classes.names

    return run


def format_case(folder: Path) -> Callable[[int], None]:
    """``dataset.yaml`` and CVAT's ``labelmap.txt``: a label is train ids of the classes, or refused."""
    tree = {
        "images": "photos/{split}/*/{id}_rgb", "labels": "masks/{split}/*/{id}_mask.png",
        "splits": {"val": "valid", "train": "train"}, "ignore": [0, 255, "#000000"],
        "classes": {"road": 7, "vehicle": [26, 27, "#0000e6"], "sky": {"ids": [23], "colour": "#4682b4"}},
    }  # fmt: skip
    ids = np.full(SIZE, 7, np.uint8)
    for name in (
        "photos/train/a/0_rgb.png",
        "masks/train/a/0_mask.png",
        "images/train/0.png",
        "labels/train/0.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(folder / name)
    labelmap = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:7,7,7::\n"
    (folder / "labelmap.txt").write_bytes(labelmap)

    def run(seed: int) -> None:
        rng, path = random.Random(seed), folder / "dataset.yaml"
        kind = rng.randrange(3)
        path.unlink(missing_ok=True)
        if kind == 0:
            path.write_text(json.dumps(mutate_tree(rng, tree), default=str))
        elif kind == 1:
            path.write_bytes(mutate_bytes(rng, json.dumps(tree).encode()))
        changed = mutate_bytes(rng, labelmap) if kind == 2 else labelmap
        (folder / "labelmap.txt").write_bytes(changed)
        dataset = open_dataset(f"folder:{folder}", "train")
        label = dataset[0].label
        assert label.shape == SIZE
        assert ((label < len(dataset.classes)) | (label == 255)).all()

    return run


def folder_case(folder: Path) -> Callable[[int], None]:
    """A dataset in folders with files that are lost, doubled, renamed or no files: pairs stay pairs."""
    template = folder / "template"
    for kind in ("images", "labels"):
        (template / kind / "train").mkdir(parents=True)
    for i in range(4):
        ids = np.full(SIZE, i, np.uint8)
        Image.fromarray(ids).save(template / f"labels/train/{i:02d}.png")
        Image.fromarray(np.repeat(ids[..., None] * 20, 3, 2)).save(template / f"images/train/{i:02d}.png")
    (template / "classes.txt").write_text("\n".join("abcd"))

    def run(seed: int) -> None:
        rng = random.Random(seed)
        root = folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        for _ in range(rng.choice([1, 1, 2])):
            _disturb(rng, root)
        dataset = open_dataset(f"folder:{root}", "train")
        for index in range(len(dataset)):
            sample = dataset[index]
            assert (sample.label == sample.image[..., 0] // 20).all(), sample.id
            files = dataset.files(index)
            assert files.image.is_relative_to(root)
            assert files.label.is_relative_to(root)

    return run


def _disturb(rng: random.Random, root: Path) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = rng.choice(files)
    kind = rng.randrange(8)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.rename(path.with_suffix(rng.choice([".PNG", ".jpg", ".txt", ""])))
    elif kind == 2:
        path.rename(path.with_name(rng.choice(["..png", ".hidden.png", "a b.png", "é.png", "05.png"])))
    elif kind == 3:
        shutil.copy(path, path.with_suffix(".jpg"))
    elif kind == 4:
        path.unlink()
        path.mkdir()
    elif kind == 5:
        path.unlink()
        path.symlink_to(rng.choice(["/nowhere", path.name, "/dev/null", "."]))
    elif kind == 6:
        path.write_bytes(b"")
    else:
        shutil.rmtree(path.parent, ignore_errors=True)


def manifest_case(folder: Path) -> Callable[[int], None]:
    """``manifest.json`` of translated images: no id leads out of its folder."""
    record = {"bytes": 100, "sha256": "0" * 64}
    tree = {
        "source": "camvid:data", "split": "train", "size": [24, 32], "classes": ["a", "b"],
        "generator": "f" * 64, "files": {"0001": record, "0002": None},
    }  # fmt: skip
    (folder / "translated").mkdir()
    names = ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "C:\\x", "con", "x" * 300]

    def run(seed: int) -> None:
        rng = random.Random(seed)
        changed = mutate_tree(rng, tree) if rng.random() < 0.7 else json.loads(json.dumps(tree))
        if isinstance(changed.get("files"), dict) and rng.random() < 0.5:
            changed["files"][rng.choice(names)] = record
        text = json.dumps(changed, default=str).encode()
        path = folder / "translated/manifest.json"
        path.write_bytes(mutate_bytes(rng, text) if rng.random() < 0.3 else text)
        manifest = read_manifest(folder)
        for name in manifest.files:
            assert image_path(folder, name).parent == folder / "translated/images", name
            assert name not in ("", ".", ".."), name

    return run
