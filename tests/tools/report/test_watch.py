"""View of a running run: its lines at each moment, and when it ends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from udas_fast import cli
from udas_fast.data.translated import Manifest, manifest_file, read_manifest
from udas_fast.errors import InputError
from udas_fast.tools.report import watch_run
from udas_fast.tools.report.watch import TAIL, read_status


def _cut(run: Path, steps: int) -> None:
    """Leave what ``run`` had written after ``steps`` steps, half a line of the next one with it."""
    for name in ("metrics", "timing"):
        lines = (run / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (run / f"{name}.jsonl").write_text("".join(lines[:steps]) + lines[steps][:9])
    (run / "model.safetensors").unlink()


def test_where_a_run_is_and_how_long_it_takes(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run")
    _cut(run, 8)
    hour_ago = time.time() - 3600
    os.utime(run / "metrics.jsonl", (hour_ago, hour_ago))
    status = read_status(run)
    assert (status.done, status.total, status.finished) == (8, 14, False)
    assert status.seconds_left == pytest.approx(6 * 0.5)
    watch_run(run, once=True)
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "example",
        "last write 1:00:0",
        "train.1 (2 of 3), step 2 of 4",
        "8 of 14",
        "seg 1.3",
        "0.01",
        "2.00 steps per second, 20.0% waiting for data",
        "0:00:03 at this rate",
        "adapt 58.3, train.1 81.7, train.2 90.5",
    ):
        assert text in shown


def test_scores_during_the_run(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("run")
    lines = [{"step": 2 * i, "phase": "adapt", "miou": i / 10, "best": i == 3} for i in range(1, 7)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "scores.jsonl").write_text(text + '{"step": 14, "mi')
    watch_run(run, once=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "4: 20.0, 6: 30.0, 8: 40.0, 10: 50.0, 12: 60.0; best.safetensors 30.0 at step 6" in shown
    (run / "scores.jsonl").write_text('{"step": -1, "phase": "adapt", "miou": 0.5}\n')
    with pytest.raises(InputError, match=r"scores.jsonl: damaged \(step"):
        watch_run(run, once=True)


def test_the_view_ends_with_the_run(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("run")
    (run / "model.safetensors").unlink()
    waited = []

    def finish(seconds: float) -> None:
        waited.append(seconds)
        (run / "model.safetensors").touch()

    monkeypatch.setattr("udas_fast.tools.report.watch.time.sleep", finish)
    watch_run(run)
    assert len(waited) == 1
    assert "complete" in capsys.readouterr().out


def test_ctrl_c_ends_the_view_alone(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run")
    (run / "model.safetensors").unlink()
    before = sorted(path.name for path in run.iterdir())

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("udas_fast.tools.report.watch.time.sleep", interrupt)
    watch_run(run)
    assert "of 14" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_run_that_has_just_begun(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("run")
    for name in ("metrics.jsonl", "timing.jsonl", "scores.json", "model.safetensors"):
        (run / name).unlink()
    watch_run(run, once=True)
    shown = capsys.readouterr().out
    assert "no step has been recorded yet" in shown
    assert "0 of 14" in shown


def test_a_translation_goes_on_after_its_steps(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run")
    for name in ("scores.json", "model.safetensors"):
        (run / name).unlink()
    hour_ago = time.time() - 3600
    os.utime(run / "metrics.jsonl", (hour_ago, hour_ago))
    images = run / "translated/images"
    images.mkdir(parents=True)
    record = {"bytes": 0, "sha256": ""}
    files = {f"{i:04d}": record if i < 3 else None for i in range(7)}
    for i in range(3):  # one every two seconds
        (images / f"{i:04d}.png").touch()
        os.utime(images / f"{i:04d}.png", (hour_ago + 2 * i, hour_ago + 2 * i))
    manifest = {"source": "a:b", "split": "train", "size": None, "classes": ["road"], "generator": ""}
    (run / "translated/manifest.json").write_text(json.dumps({**manifest, "files": files}))
    status = read_status(run)
    assert status.seconds_left == pytest.approx(4 * 2)
    assert status.age < 600  # an image is a sign of life too
    watch_run(run, once=True)
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("14 of 14", "3 of 7 translated, 0.50 per second", "0:00:08 at this rate", "not complete"):
        assert text in shown
    files = dict.fromkeys(files, record)
    (run / "translated/manifest.json").write_text(json.dumps({**manifest, "files": files}))
    watch_run(run)  # ends by itself
    shown = " ".join(capsys.readouterr().out.split())
    assert "state complete" in shown
    assert "7 of 7 translated" in shown


def test_a_manifest_is_read_again_only_when_it_has_changed(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reads = make_run("run"), []

    def counted(path: Path) -> Manifest | None:
        reads.append(path)
        return read_manifest(path)

    monkeypatch.setattr("udas_fast.tools.report.watch.read_manifest", counted)
    file = manifest_file(run)
    file.parent.mkdir()
    empty = {"source": "a:b", "split": "train", "size": None, "classes": ["road"], "generator": ""}
    for written, total in ((1000, 3), (2000, 5)):
        file.write_text(json.dumps({**empty, "files": {str(i): None for i in range(total)}}))
        os.utime(file, (written, written))
        assert [read_status(run).images.total for _ in range(3)] == [total] * 3
    assert len(reads) == 2


def test_only_the_end_of_long_files_is_read(make_run: Callable[..., Path]) -> None:
    run = make_run("run")
    steps = 3 * TAIL // 40
    lines = [{"step": i, "seconds": 1.0 if i < steps - 100 else 0.25, "data_wait": 0.0} for i in range(steps)]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (run / "timing.jsonl").write_bytes(b"not read" + content)
    assert read_status(run).seconds == 0.25


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.jsonl", "[1]\n"), ("timing.jsonl", '{"step": 1, "seconds": "x"}\n'), ("scores.json", "{")],
)
def test_damaged_files_are_named(make_run: Callable[..., Path], name: str, content: str) -> None:
    run = make_run("run")
    (run / name).write_text(content)
    with pytest.raises(InputError, match=name):
        watch_run(run, once=True)


def test_the_command_needs_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["udas-fast", "watch", str(tmp_path), "--once"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no run" in capsys.readouterr().err
