"""One process fails: the others end at once and tell of it, and the user reads the first cause, once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from udas_fast import Trainer, distributed
from udas_fast.data import BadFile, Sample, SegmentationDataset, open_dataset
from udas_fast.data.domains import Domains
from udas_fast.distributed import leave
from udas_fast.engine.interrupt import Interrupted
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe, override, small


class Failing(SegmentationDataset):
    """A dataset whose third image that the process of rank 1 reads is none."""

    def __init__(self, dataset: SegmentationDataset, error: Exception) -> None:
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes
        self.error, self.read = error, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        if self.read == 3 and distributed.get_rank() == 1:
            raise self.error
        return self.dataset[index]


def train(root: Path, run: Path, error: Exception) -> None:
    recipe = small(get_recipe("no_adaptation"), size=(24, 32), steps=4, batch_size=2)
    recipe = override(recipe, ["model.width=4", "precision=fp32"])
    source = Failing(open_dataset(f"camvid:{root}", "train"), error)
    Trainer(recipe, Domains(source=source), run_dir=run, device="cpu", log_every=1).fit()


def a_file_turns_bad(root: Path, run: Path) -> None:
    """All raise what one has met, and the main process has written a checkpoint."""
    with pytest.raises(BadFile, match=r"image 7 is none; .* stopped after step 2: repair the file"):
        train(root, run, InputError("image 7 is none"))
    if distributed.is_main():
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002.pt"]


def no_thread_is_left(root: Path, run: Path) -> None:
    """One that asks for the GIL of an interpreter that is going down ends it with SIGABRT."""
    a_file_turns_bad(root, run)
    leave()
    threads = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name]


def a_process_breaks(root: Path, folder: Path) -> None:
    """What nobody has foreseen; the process ends as an uncaught exception ends one."""
    try:
        train(root, folder / "run", RuntimeError("what nobody has foreseen"))
    except Exception as error:
        (folder / str(distributed.get_rank())).write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def one_is_asked_to_stop(folder: Path) -> None:
    """By a signal to it alone, where processes work by themselves for a while."""
    try:
        with distributed.stopping_all():
            if distributed.get_rank() == 1:
                raise Interrupted("stopped between two stages or rounds")
            distributed.all_gather_object(None)
    except (Interrupted, distributed.ProcessLost) as error:
        (folder / str(distributed.get_rank())).write_text(f"{error} {getattr(error, 'interrupted', '')}")
        os._exit(0)


@pytest.mark.slow
def test_the_others_know_that_it_was_no_failure(tmp_path: Path, processes: Callable[..., None]) -> None:
    assert processes(2, one_is_asked_to_stop, tmp_path, codes=True) == [0, 0]
    said = "process 1 stopped with Interrupted: stopped between two stages or rounds True"
    assert (tmp_path / "0").read_text() == said


@pytest.mark.slow
def test_a_bad_file_of_one_process_stops_all_after_a_checkpoint(
    camvid_root: Path, tmp_path: Path, processes: Callable[..., None]
) -> None:
    processes(2, a_file_turns_bad, camvid_root, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux")
def test_leaving_the_group_ends_its_threads(
    camvid_root: Path, tmp_path: Path, processes: Callable[..., None]
) -> None:
    processes(2, no_thread_is_left, camvid_root, tmp_path / "run")


@pytest.mark.slow
def test_what_breaks_one_process_ends_the_others_with_its_reason(
    camvid_root: Path, tmp_path: Path, processes: Callable[..., None]
) -> None:
    assert processes(2, a_process_breaks, camvid_root, tmp_path, codes=True) == [1, 1]
    assert (tmp_path / "1").read_text() == "RuntimeError: what nobody has foreseen"
    assert (tmp_path / "0").read_text() == (
        "ProcessLost: process 1 stopped with RuntimeError: what nobody has foreseen"
    )


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["-m", "udas_fast", "train", *arguments, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.mark.slow
def test_torchrun_trains_and_tells_a_refusal_once(camvid_root: Path, tmp_path: Path) -> None:
    arguments = ["no_adaptation", "--source", f"camvid:{camvid_root}", "--small", "24x32", "--steps", "2"]
    arguments += ["--set", "model.width=4", "--out", str(tmp_path / "run"), "--engine", "torch"]
    refused = torchrun(*arguments, "--set", "input.batch_size=3")
    assert refused.returncode != 0
    sentence = "udas-fast: input.batch_size: found 3 for 2 processes, expected a multiple of 2\n"
    assert refused.stderr.count(sentence) == 1
    assert not (tmp_path / "run").exists()

    trained = torchrun(*arguments, "--set", "input.batch_size=2")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count(f"run folder: {tmp_path / 'run'}") == 1
    assert "2 processes on cpu" in trained.stdout
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
