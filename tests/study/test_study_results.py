"""Tables of made-up scores: means, spreads and gaps by hand, and the paper's figures where they belong."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest

from udas_fast.data import CITYSCAPES
from udas_fast.errors import InputError
from udas_fast.study import Plan, Task, paper, plan_study
from udas_fast.study.plots import labels_plot
from udas_fast.study.results import Spread, StudyResult, collect
from udas_fast.study.tables import csv_text, gaps, markdown

PROTOCOL = {"dataset": "made up", "split": "val", "images": 3, "input_size": [32, 48], "num_classes": 3}


def _write(folder: Path, iou: dict[str, float | None], protocol: dict[str, object] = PROTOCOL) -> None:
    known = [v for v in iou.values() if v is not None]
    score = {"miou": sum(known) / len(known), "iou": iou, "protocol": protocol}
    folder.mkdir(parents=True, exist_ok=True)
    phases = {"adaptation": score | {"miou": 0.01}, "self_training": score}
    (folder / "scores.json").write_text(json.dumps({"phases": phases}))


def _plan(study: str = "labels", target: str = "camvid:b", source: str = "camvid:a") -> Plan:
    return plan_study(study, Task(source, target, size=(32, 48), steps=60), seeds=(0, 1), labels=(20, 0))


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    """Two seeds: supervised-20 40 and 50 %, udas-20 60 and 64 %, udas-0 30 and 30 %; "sky" as below."""
    plan = _plan()
    scores = {"supervised": {20: (0.4, 0.5)}, "udas": {20: (0.6, 0.64), 0: (0.3, 0.3)}}
    for run in plan.runs:
        value = scores[run.row.recipe][run.row.labels][run.seed]
        sky = None if (run.row.recipe, run.seed) == ("supervised", 1) else value  # does not occur there
        _write(tmp_path / run.folder, {"sky": sky, "road": value, "car": value})
    return collect(plan, tmp_path)


def test_mean_and_standard_deviation_over_seeds(result: StudyResult) -> None:
    supervised, ours, none = result.rows
    assert supervised.mean == Spread(45.0, pytest.approx(50**0.5))  # ((-5)² + 5²) / (2 − 1)
    assert ours.mean == Spread(pytest.approx(62.0), pytest.approx(8**0.5))
    assert none.mean == Spread(30.0, 0.0)
    assert supervised.by_class()["sky"] == Spread(40.0, None)
    assert [phase["adaptation"] for phase in ours.phases] == [1.0, 1.0]
    assert Spread.of([None]) == Spread(None, None)
    assert str(Spread(None, None)) == "–"


def test_gap_is_the_spread_of_the_differences_by_seed(result: StudyResult) -> None:
    assert gaps(result) == {20: Spread(pytest.approx(17.0), pytest.approx(18**0.5)), 0: Spread(None, None)}


def test_markdown_as_the_papers_tables(result: StudyResult) -> None:
    text = markdown(result, "udas-fast study labels")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| Labelled target images | 20 | 0 |"
    assert lines[2:5] == [
        "| Supervised | 45.0 ± 7.1 | – |",
        "| UDAS | 62.0 ± 2.8 | 30.0 ± 0.0 |",
        "| UDAS − Supervised | +17.0 ± 4.2 | – |",
    ]
    assert lines[5] == "| Model | sky | road | car | mIoU |"
    assert lines[7] == "| Supervised, 20 labels | 40.0 | 45.0 ± 7.1 | 45.0 ± 7.1 | **45.0 ± 7.1** |"
    assert "paper" not in text
    assert "made up val, 3 images" in text
    assert "`udas-fast study labels`" in text


def test_csv_holds_every_seed_and_the_spread(result: StudyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert [row["seed"] for row in rows[:4]] == ["0", "1", "mean", "std"]
    assert rows[1]["sky"] == ""
    assert float(rows[2]["mIoU"]) == 45
    assert [row["labels"] for row in rows[4::4]] == ["20", "0"]


def test_plot_is_drawn(result: StudyResult, tmp_path: Path) -> None:
    labels_plot(result, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").stat().st_size > 10_000


def test_runs_under_different_protocols_make_no_table(result: StudyResult, tmp_path: Path) -> None:
    _write(
        tmp_path / result.plan.runs[0].folder, dict.fromkeys(result.classes, 0.5), PROTOCOL | {"images": 4}
    )
    with pytest.raises(InputError, match="2 protocols"):
        collect(result.plan, tmp_path)
    (tmp_path / result.plan.runs[0].folder / "scores.json").write_text("{")
    with pytest.raises(InputError, match="scores.json: damaged"):
        collect(result.plan, tmp_path)


@pytest.mark.parametrize("study", ["ablation", "labels"])
def test_the_papers_figures_stand_beside_its_own_task_only(study: str, tmp_path: Path) -> None:
    plan = _plan(study, "cityscapes:b", "gta5:a")
    for run in plan.runs:
        _write(tmp_path / run.folder, dict.fromkeys(CITYSCAPES.names, 0.5), PROTOCOL | {"num_classes": 19})
    text = markdown(collect(plan, tmp_path), "command")
    if study == "ablation":
        assert text.count("UDAS paper") == 5
        line = next(line for line in text.splitlines() if line.startswith("| *ST + UDA, UDAS paper*"))
        assert line.endswith("| 44.4 |")
        assert "| *ST + DA + SSL, UDAS paper* | 95.4 |" in text
    else:
        assert "| *UDAS, UDAS paper* | – | 43.9 |" in text  # the paper has no 20
    synthia = collect(_plan(study, "cityscapes:b", "synthia:a"), tmp_path)
    assert "paper" not in markdown(synthia, "command")


def test_the_papers_means_are_those_of_its_classes() -> None:
    for iou, miou in paper.ABLATION.values():
        assert len(iou) == len(CITYSCAPES)
        assert statistics.mean(iou) == pytest.approx(miou, abs=0.051)  # printed to one decimal
    assert paper.ABLATION["ST + DA + SSL"][1] == paper.LABELS["udas"][2975]
