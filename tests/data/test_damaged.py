"""Two hundred damaged and unusual files in both engines: each is either reported by name or read correctly."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import BadFiles, Geometry, TrainLoader, open_dataset
from udas_fast.errors import InputError

SIZE = (40, 56)
COPIES = 8  # of each of the 25 kinds
ENGINES = ["torch", pytest.param("dali", marks=pytest.mark.dali)]


def _encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def _palette(ids: np.ndarray, **options) -> bytes:
    image = Image.fromarray(ids).convert("L")
    image.putpalette([(5 * i) % 256 for i in range(768)])
    return _encoded(image, **options)


def _recompressed(data: bytes, change) -> bytes:
    """Change the compressed pixels of a PNG and correct every checksum."""
    out, position = data[:8], 8
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        content = data[position + 8 : position + 8 + length]
        content = change(content) if kind == b"IDAT" else content
        out += struct.pack(">I4s", len(content), kind) + content
        out += struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
        position += 12 + length
    return out


def _rotated(image: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(np.ascontiguousarray(np.rot90(image)), "JPEG", quality=95, exif=exif)


def _variants(image: np.ndarray, ids: np.ndarray, rng: np.random.Generator, png16) -> dict:
    """Return kind → (image file, label file, whether it can be read)."""
    jpeg, png, label = _encoded(image, "JPEG", quality=95), _encoded(image), _palette(ids)
    place = rng.uniform(0.3, 0.95)
    flipped = bytearray(label)
    flipped[int(len(label) * place)] ^= 0xFF
    small = ids[: SIZE[0] // 2]
    one = np.full((1, 1, 3), 9, np.uint8), np.full((1, 1), 7, np.uint8)
    wide = np.repeat(ids[..., None], 3, axis=2).astype(np.uint16) * 257
    outside = ids.copy()
    outside[tuple(rng.integers(0, SIZE))] = 200
    return {
        "whole jpeg": (jpeg, label, True),
        "whole png": (png, _encoded(ids), True),
        "truncated jpeg": (jpeg[: int(len(jpeg) * place)], label, False),
        "truncated png": (png[: int(len(png) * place)], label, False),
        "truncated label": (png, label[: int(len(label) * place)], False),
        "wrong magic": (b"GIF89a" + png[6:], label, False),
        "wrong magic label": (png, b"\x89PMG" + label[4:], False),
        "swapped": (_encoded(ids), _encoded(image), False),
        "empty image": (b"", label, False),
        "empty label": (png, b"", False),
        "label of another size": (png, _palette(small), True),  # GTA5's are resized
        "16-bit colour label": (png, png16(wide, [0] * SIZE[0]), False),
        "label of floats": (png, _encoded(Image.fromarray(ids.astype(np.float32)), "TIFF"), False),
        "byte turned over in the label": (png, bytes(flipped), False),
        "label of broken pixels": (png, _recompressed(label, lambda c: c[: len(c) // 2]), False),
        "label of other pixels": (png, _recompressed(label, lambda c: c[:20] + c[20:][::-1]), False),
        "id outside the map": (png, _palette(outside), False),
        "text": (b"not an image", label, False),
        "16-bit grey label": (png, _encoded(Image.fromarray(ids.astype(np.uint16))), True),
        "1-pixel": (_encoded(one[0]), _encoded(one[1]), True),
        "cmyk": (_encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95), label, True),
        "rotated": (_rotated(image), label, True),
        "palette image": (_encoded(Image.fromarray(image).quantize(64)), label, True),
        "image with alpha": (_encoded(Image.fromarray(image).convert("RGBA")), label, True),
        "16-bit image": (png16(image.astype(np.uint16) * 256 + 77, [0] * SIZE[0]), label, True),
    }


@pytest.fixture(scope="module")
def damaged(
    tmp_path_factory: pytest.TempPathFactory, png16
) -> tuple[Path, dict[str, tuple[np.ndarray, bool]]]:
    """Return (a GTA5-style root, id → (ids as intended, whether the files can be read))."""
    root = tmp_path_factory.mktemp("gta5")
    rng = np.random.default_rng(0)
    meant: dict[str, tuple[np.ndarray, bool]] = {}
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for copy in range(COPIES):
        blocks = rng.integers(0, 35, (SIZE[0] // 8, SIZE[1] // 8), dtype=np.uint8)
        ids = blocks.repeat(8, 0).repeat(8, 1)
        colours = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(colours).resize(SIZE[::-1], Image.Resampling.BICUBIC))
        for kind, (image_file, label_file, readable) in _variants(image, ids, rng, png16).items():
            name = f"{kind.replace(' ', '_')}_{copy}"
            (root / "images" / f"{name}.png").write_bytes(image_file)
            (root / "labels" / f"{name}.png").write_bytes(label_file)
            others = {"1-pixel": np.full((1, 1), 7, np.uint8), "label of another size": ids[: SIZE[0] // 2]}
            meant[name] = (others.get(kind, ids), readable)
    assert len(meant) == 200
    return root, meant


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_each_is_named_or_read_correctly(damaged, engine):
    root, meant = damaged
    dataset = open_dataset(f"gta5:{root}", "train")
    bad_files = BadFiles(limit=200)
    loader = TrainLoader(dataset, Geometry(size=SIZE), 5, 0, "damaged", 1, engine=engine, bad_files=bad_files)
    seen = {}
    for batch in itertools.islice(loader.batches(), 40):
        for i, name in enumerate(batch.ids):
            seen[name] = batch.image[i].permute(1, 2, 0).numpy(), batch.label[i].numpy()
    unreadable = {name for name, (_, readable) in meant.items() if not readable}
    named = {next(name for name in meant if f"/{name}.png" in sentence) for sentence in bad_files.found}
    assert named == unreadable
    assert set(seen) == set(meant) - unreadable
    for name, (image, label) in seen.items():
        expected = np.asarray(
            Image.fromarray(dataset.id_map.table[meant[name][0]]).resize(SIZE[::-1], Image.Resampling.NEAREST)
        )
        assert np.array_equal(label, expected), name
        original = dataset[[sample.id for sample in dataset.samples].index(name)].image
        assert np.abs(image.astype(int) - original).max() <= 1, name


@pytest.mark.parametrize("engine", ENGINES)
def test_each_alone_is_named_or_read(damaged, engine):
    # The default: the first bad file ends the batches with a message, not with a crash.
    root, meant = damaged
    dataset = open_dataset(f"gta5:{root}", "train")
    for index, sample in enumerate(dataset.samples):
        if not sample.id.endswith("_0"):
            continue
        alone = dataset.__class__(dataset.spec, [dataset.samples[index]])
        batches = TrainLoader(alone, Geometry(size=SIZE), 1, 0, "alone", engine=engine).batches()
        if meant[sample.id][1]:
            assert next(batches).ids == [sample.id]
        else:
            with pytest.raises(InputError, match=f"/{sample.id}.png"):
                next(batches)
