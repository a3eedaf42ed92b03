"""Checkpoints under damage, kills and full disks: what is read is what was written, or it is said not to be."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from udas_fast.engine.checkpoint import CheckpointFolder, atomic_save, read_state
from udas_fast.errors import InputError


def _state(value: float = 1.0) -> dict:
    return {"model": {"weight": torch.full((30,), value), "count": torch.tensor([3])}, "step": {"done": 7}}


def _same(one: dict, other: dict) -> bool:
    return one["step"] == other["step"] and all(
        torch.equal(one["model"][k], other["model"][k]) for k in other["model"]
    )


def _names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.iterdir())


def _damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    weights = content.index(torch.full((30,), 2.0).numpy().tobytes())
    content[weights + 2] ^= 0x10  # 2.0 becomes 2.25 or so, which no shape, name or type tells
    path.write_bytes({"truncated": content[:900], "flipped": content, "empty": b""}[kind])


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Two checkpoints, of value 1 at step 4 and of value 2 at step 8."""
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    checkpoints.save(_state(1.0), 4)
    checkpoints.save(_state(2.0), 8)
    return checkpoints


def test_no_byte_changes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    atomic_save(_state(), path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):  # the other bytes are like these
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        # Either the change is told, or it is in the padding between two records.
        with suppress(InputError):
            assert _same(read_state(path), _state())


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(
    folder: CheckpointFolder, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _damage(folder.newest(), kind)
    assert _same(folder.load(), _state(1.0))
    said = capsys.readouterr().err.strip()
    assert "step-00000008.pt: cannot be read" in said
    assert said.endswith("going on from step-00000004.pt")
    assert "\n" not in said
    folder.save(_state(3.0), 6)  # before the damaged one, which must not come back as the newest
    assert _names(folder) == ["step-00000004.pt", "step-00000006.pt"]
    assert _same(folder.load(), _state(3.0))
    assert not capsys.readouterr().err


def test_when_all_are_damaged_one_sentence_says_so(folder: CheckpointFolder) -> None:
    for path in folder.folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="found 2, all damaged; checkpoint .*8.pt: cannot be read") as caught:
        folder.load()
    assert "\n" not in str(caught.value)


def test_the_newest_two_and_the_milestones_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.load() is None
    for step, milestone in ((2, None), (4, "adaptation"), (6, None), (8, "self_training.1"), (10, None)):
        folder.save(_state(float(step)), step, milestone)
    expected = ["step-00000004.adaptation.pt", "step-00000008.self_training.1.pt", "step-00000010.pt"]
    assert _names(folder) == expected
    assert _same(folder.load(), _state(10.0))


def test_a_full_disk_leaves_the_checkpoint_before(folder: CheckpointFolder) -> None:
    (folder.folder / "step-00000012.pt.tmp").symlink_to("/dev/full")  # every write finds no space left
    with pytest.raises(InputError, match=r"12.pt: cannot be written \(no space left on device\)"):
        folder.save(_state(), 12)
    assert _names(folder) == ["step-00000004.pt", "step-00000008.pt"]
    assert _same(folder.load(), _state(2.0))


def test_a_disk_that_fills_in_the_midst_of_a_checkpoint(folder: CheckpointFolder) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # no file may be larger
    try:
        with pytest.raises(InputError, match=r"12.pt: cannot be written \(file too large\)"):
            folder.save(_state() | {"more": torch.zeros(10**5)}, 12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _names(folder) == ["step-00000004.pt", "step-00000008.pt"]


def test_a_kill_during_the_write_leaves_the_checkpoint_before(folder: CheckpointFolder) -> None:
    whole = folder.newest().read_bytes()
    for step in (11, 12):  # the run goes on to another step where it stops on a signal
        (folder.folder / f"step-000000{step}.pt.tmp").write_bytes(whole[: len(whole) // 2])
    assert _same(folder.load(), _state(2.0))
    folder.save(_state(3.0), 12)
    assert _names(folder) == ["step-00000008.pt", "step-00000012.pt"]


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), 3])
def test_what_is_no_dictionary_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match="expected a dictionary"):
        read_state(tmp_path / "x.pt")


def test_a_hostile_file_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"model": Hostile()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "x.pt")
    assert not (tmp_path / "owned").exists()
