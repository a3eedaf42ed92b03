"""Writers of tiny datasets in each published layout, and of 16-bit PNGs, from the specification."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _predict(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(estimate - value))


def encode_png16(pixels: np.ndarray, filters: list[int], *, interlaced: bool = False) -> bytes:
    """Encode uint16 [H, W, 3 or 4] as a PNG whose row r is filtered with ``filters[r]``."""
    height, width, channels = pixels.shape
    step = 2 * channels
    raw = pixels.astype(">u2").view(np.uint8).reshape(height, width * step).astype(int)
    lines = bytearray()
    for r in range(height):
        lines.append(filters[r])
        for i in range(width * step):
            left = raw[r, i - step] if i >= step else 0
            up = raw[r - 1, i] if r else 0
            corner = raw[r - 1, i - step] if r and i >= step else 0
            lines.append((raw[r, i] - _predict(filters[r], left, up, corner)) % 256)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, interlaced)
    packed = zlib.compress(bytes(lines))
    middle = len(packed) // 2
    parts = chunk(b"IDAT", packed[:middle]) + chunk(b"IDAT", packed[middle:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def png16() -> Callable[..., bytes]:
    return encode_png16


def _save(path: Path, data: np.ndarray | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        Image.fromarray(data).save(path)


def _palette_png(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("L")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    assert image.mode == "P"
    image.save(path)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., tuple[Path, list[np.ndarray], list[np.ndarray]]]:
    """Return ``make(kind, ids)``, which writes a dataset with labels ``ids`` (list of [H, W]) → root, images, ids."""

    def make(kind: str, ids: list[np.ndarray], split: str = "train"):
        root = tmp_path / kind
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8) for label in ids]
        for i, (image, label) in enumerate(zip(images, ids, strict=True)):
            if kind == "cityscapes":
                city = ("aachen", "bochum")[i % 2]
                name = f"{city}/{city}_{i:06d}_000019"
                _save(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", image)
                _save(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", label)
                _save(root / f"gtFine/{split}/{name}_gtFine_color.png", image)
            elif kind == "gta5":
                _save(root / f"images/{i + 1:05d}.png", image)
                _palette_png(root / f"labels/{i + 1:05d}.png", label)
            elif kind == "synthia":
                wide = np.stack([label, np.full(label.shape, 300), np.full(label.shape, 7)], axis=2).astype(
                    np.uint16
                )
                _save(root / f"RGB/{i:07d}.png", image)
                filters = [r % 5 for r in range(len(label))]
                _save(root / f"GT/LABELS/{i:07d}.png", encode_png16(wide, filters))
            elif kind == "segnet":
                _save(root / f"{split}/{i:04d}.png", image)
                _save(root / f"{split}annot/{i:04d}.png", label)
            else:
                _save(root / f"images/{split}/{i:04d}.png", image)
                _save(root / f"labels/{split}/{i:04d}.png", label)
        return root, images, ids

    return make
