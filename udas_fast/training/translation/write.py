"""Translated images of a dataset, written into a run folder that opens as ``translated:RUN``."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.atomic import atomic_write, make_folder
from udas_fast.data import SegmentationDataset
from udas_fast.data.translated import FileRecord, Manifest, image_path, manifest_file, read_manifest, verify
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.errors import InputError

EVERY = 30.0  # seconds between two manifests: the work that a kill may lose


def is_complete(run: Path, threads: int) -> bool:
    """Return whether every image is there and undamaged; reads them all."""
    manifest = read_manifest(run)
    if manifest is None or manifest.missing:
        return False
    with ThreadPoolExecutor(threads) as pool:
        return all(pool.map(lambda entry: _intact(run, *entry), manifest.files.items()))


def write_images(
    source: SegmentationDataset,
    translate: Callable[[np.ndarray], np.ndarray],
    manifest: Manifest,
    run: Path,
    *,
    threads: int,
) -> int:
    """Write the images that are missing or damaged, ``threads`` at a time; return their number.

    ``translate`` maps uint8 RGB ``[H, W, 3]`` to the same shape and is called from all threads. Images of an earlier
    attempt by the same generator are kept. Each file is written atomically, and so is the manifest. Several processes
    share the images (collective).

    Raises:
        Interrupted: Ctrl-C or SIGTERM; written images are in the manifest.
        InputError: an image of ``source`` cannot be read.
    """
    make_folder(image_path(run, "").parent)
    files = dict(manifest.files)
    before = read_manifest(run)
    if before is not None and replace(before, files={}) == replace(manifest, files={}):
        files |= {name: record for name, record in before.files.items() if name in files}

    # At once, so that a reader knows how many there will be.
    distributed.on_main(lambda: _write_manifest(replace(manifest, files=files), run))

    def make(index: int) -> tuple[str, FileRecord, bool]:
        name = source.id(index)
        path, record = image_path(run, name), files[name]
        if record is not None and _intact(run, name, record):
            return name, record, False
        buffer = io.BytesIO()
        Image.fromarray(translate(source.unlabelled(index).image)).save(buffer, format="PNG")
        atomic_write(buffer.getvalue(), path)
        return name, FileRecord(len(buffer.getvalue()), hashlib.sha256(buffer.getbuffer()).hexdigest()), True

    mine = distributed.shard_indices(len(source))
    made, written, stopped = 0, time.monotonic(), False
    fresh: dict[str, FileRecord | None] = {}
    bar = tqdm(
        total=len(mine), desc="translating", unit="image", disable=None if distributed.is_main() else True
    )
    with StopSignal() as stop, ThreadPoolExecutor(threads) as pool, bar:
        try:
            for done, (name, record, new) in enumerate(pool.map(make, mine), 1):
                fresh[name] = record
                made += new
                bar.update()
                if distributed.is_main() and time.monotonic() - written > EVERY:
                    _write_manifest(replace(manifest, files=files | fresh), run)
                    written = time.monotonic()
                if stopped := stop.requested and done < len(mine):
                    break
        finally:
            pool.shutdown(cancel_futures=True)
            for part in distributed.all_gather_object(fresh):
                files |= part
            distributed.on_main(lambda: _write_manifest(replace(manifest, files=files), run))
    if any(distributed.all_reduce_any([stopped])):
        done = sum(record is not None for record in files.values())
        raise Interrupted(f"stopped after {done} of {len(files)} images; go on with --resume {run}")
    return sum(distributed.all_gather_object(made))


def _intact(run: Path, name: str, record: FileRecord) -> bool:
    try:
        verify(image_path(run, name), record, run)
    except InputError:
        return False
    return True


def _write_manifest(manifest: Manifest, run: Path) -> None:
    atomic_write(json.dumps(asdict(manifest), indent=1) + "\n", manifest_file(run))
