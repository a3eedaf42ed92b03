"""Tables of made-up scores: means, spreads and gaps by hand, and the paper's figures where they belong."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from udas_fast.data import CITYSCAPES
from udas_fast.errors import InputError
from udas_fast.recipes import Changes
from udas_fast.tools.study import StudyPlan, Task, paper, plan_study
from udas_fast.tools.study.collect import Spread, StudyTable, collect
from udas_fast.tools.study.figures import labels_figure, methods_figure
from udas_fast.tools.study.rows import Study
from udas_fast.tools.study.tables import csv_text, gaps, markdown

PROTOCOL = {"dataset": "made up", "split": "val", "images": 3, "input_size": [32, 48], "num_classes": 3}


def _write(folder: Path, iou: dict[str, float | None], protocol: dict[str, object] = PROTOCOL) -> None:
    known = [v for v in iou.values() if v is not None]
    means = dict.fromkeys(("synthia16", "synthia13"), 0.25)
    score = {"miou": sum(known) / len(known), "iou": iou, "protocol": protocol}
    score |= {"pixel_accuracy": 0.75, "subset_means": means}
    folder.mkdir(parents=True, exist_ok=True)
    phases = {"adaptation": score | {"miou": 0.01}, "self_training": score}
    (folder / "scores.json").write_text(json.dumps({"phases": phases}))


def _plan(study: str = "labels", target: str = "camvid:b", source: str = "camvid:a") -> StudyPlan:
    return plan_study(
        study,
        Task(source, target, changes=Changes(small=(32, 48), steps=60)),
        seeds=(0, 1),
        num_labels=(20, 0),
    )


@pytest.fixture
def table(tmp_path: Path) -> StudyTable:
    """Two seeds, %: supervised-20 40, 50; joint-20 50, 56; udas-20 60, 64; udas-0 30, 30; online as udas."""
    plan = _plan()
    scores = {
        "supervised": {20: (0.4, 0.5)},
        "joint": {20: (0.5, 0.56)},
        "udas": {20: (0.6, 0.64), 0: (0.3, 0.3)},
        "online_self_training": {20: (0.6, 0.64), 0: (0.3, 0.3)},
    }
    for run in plan.runs:
        value = scores[run.row.recipe][run.row.num_labels][run.seed]
        sky = None if (run.row.recipe, run.seed) == ("supervised", 1) else value  # does not occur there
        _write(tmp_path / run.folder, {"sky": sky, "road": value, "car": value})
    return collect(plan, tmp_path, "udas-fast study labels")


def test_mean_and_standard_deviation_over_seeds(table: StudyTable) -> None:
    supervised, _, ours, none, *_ = table.rows
    assert (supervised.miou.mean, supervised.miou.std) == (45, pytest.approx(50**0.5))  # (5² + 5²) / (2 − 1)
    assert (ours.miou.mean, ours.miou.std) == (pytest.approx(62), pytest.approx(8**0.5))
    assert none.miou == Spread([30, 30], 30, 0)
    assert supervised.iou["sky"] == Spread([40, None], 40, None)
    assert [phase["adaptation"] for phase in ours.phases] == [1, 1]
    assert str(Spread.of([None])) == "–"


def test_the_environment_is_that_of_the_runs(table: StudyTable, tmp_path: Path) -> None:
    plan = _plan()
    for run in plan.runs:
        recorded = {"cpu": "A", "torch": "2.13", "threads": 1 + run.seed}
        (tmp_path / run.folder / "environment.json").write_text(json.dumps(recorded))
    expected = {"cpu": "A", "torch": "2.13", "threads": "1 and 2"}
    assert collect(plan, tmp_path, "command").environment == expected
    assert "A, torch 2.13; `command`" in markdown(collect(plan, tmp_path, "command"))


def test_gap_is_the_spread_of_the_differences_by_seed(table: StudyTable) -> None:
    gap = gaps(table)["UDAS"]
    assert gap[20].by_seed == pytest.approx([20, 14])
    assert (gap[20].mean, gap[20].std) == (pytest.approx(17), pytest.approx(18**0.5))
    assert list(gap) == [20]


def test_a_title_with_a_comma_is_one_method(table: StudyTable) -> None:
    rows = [replace(row, name=row.name.replace("UDAS", "New, with a comma")) for row in table.rows]
    found = list(gaps(replace(table, rows=rows)))
    assert found == ["Joint", "New, with a comma", "Online self-training"]


def test_json_and_back(table: StudyTable) -> None:
    assert StudyTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_markdown_as_the_papers_tables(table: StudyTable) -> None:
    text = markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| Labelled target images | 20 | 0 |"
    assert lines[2:9] == [
        "| Supervised | 45.0 ± 7.1 | – |",
        "| Joint | 53.0 ± 4.2 | – |",
        "| UDAS | 62.0 ± 2.8 | 30.0 ± 0.0 |",
        "| Online self-training | 62.0 ± 2.8 | 30.0 ± 0.0 |",
        "| Joint − Supervised | +8.0 ± 2.8 | – |",
        "| UDAS − Supervised | +17.0 ± 4.2 | – |",
        "| Online self-training − Supervised | +17.0 ± 4.2 | – |",
    ]
    assert lines[9] == "| Model | sky | road | car | mIoU |"
    assert lines[11] == "| Supervised, 20 labels | 40.0 | 45.0 ± 7.1 | 45.0 ± 7.1 | **45.0 ± 7.1** |"
    assert "paper" not in text
    assert "made up val, 3 images" in text
    assert "`udas-fast study labels`" in text


@pytest.fixture
def methods(tmp_path: Path) -> StudyTable:
    """Two seeds; every row at 40 and 50 %, DDM at 60 and 70 % after two rounds that rise from 30 % by 10 % a phase."""
    plan = _plan("methods")
    for run in plan.runs:
        first = 0.4 + 0.1 * run.seed
        _write(tmp_path / run.folder, {"sky": first, "road": first, "car": first})
        if run.row.recipe == "ddm":
            phases = [f"{name}_{n}" for n in (1, 2) for name in ("region", "sample", "mean", "student")]
            names = [name.replace("mean_1", "student_1.teachers") for name in phases]
            names = [name.replace("mean_2", "student_2.teachers") for name in names]
            path = tmp_path / run.folder / "scores.json"
            score = json.loads(path.read_text())["phases"]["self_training"]
            by_phase = {name: score | {"miou": first - 0.1 + 0.01 * i} for i, name in enumerate(names)}
            path.write_text(json.dumps({"phases": by_phase | {"student_2": score | {"miou": first + 0.2}}}))
    return collect(plan, tmp_path, "udas-fast study methods")


def test_methods_by_labels_and_ddm_by_round(methods: StudyTable) -> None:
    text = markdown(methods)
    by_labels, by_round, by_class = (
        [line for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")[:3]
    )
    assert by_labels[0] == "| Labelled target images | 20 | 0 |"
    assert "| AdaptSegNet (one level) | – | 45.0 ± 7.1 |" in by_labels
    assert {
        "| Supervised | 45.0 ± 7.1 | – |",
        "| Joint | 45.0 ± 7.1 | – |",
        "| DDM | 65.0 ± 7.1 | – |",
        "| UDAS − Supervised | +0.0 ± 0.0 | – |",
        "| Joint − Supervised | +0.0 ± 0.0 | – |",
        "| DDM − Supervised | +20.0 ± 0.0 | – |",
    } <= {*by_labels}
    assert by_round[0] == "| DDM, 20 labels | round 1 | round 2 |"
    assert by_round[2:] == [
        "| Region-level teacher | 35.0 ± 7.1 | 39.0 ± 7.1 |",
        "| Sample-level teacher | 36.0 ± 7.1 | 40.0 ± 7.1 |",
        "| Both teachers' mean | 37.0 ± 7.1 | 41.0 ± 7.1 |",
        "| Student | 38.0 ± 7.1 | 65.0 ± 7.1 |",
    ]
    assert len(by_class) == 2 + len(methods.rows)
    assert "60 steps in every row, of each of DDM's three networks" in text
    assert "CyCADA is left out" in text
    assert StudyTable.from_dict(json.loads(json.dumps(methods.to_dict()))) == methods


def test_bars_are_drawn(methods: StudyTable, tmp_path: Path) -> None:
    methods_figure(methods, tmp_path / "methods.png")
    assert (tmp_path / "methods.png").stat().st_size > 10_000


def test_csv_holds_every_seed_and_the_spread(table: StudyTable) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["seed"] for row in rows[:4]] == ["0", "1", "mean", "std"]
    assert rows[1]["sky"] == ""
    assert float(rows[2]["mIoU"]) == 45
    assert [row["labels"] for row in rows[4::4]] == ["20", "20", "0", "20", "0"]


def test_plot_is_drawn(table: StudyTable, tmp_path: Path) -> None:
    labels_figure(table, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").stat().st_size > 10_000


def test_runs_under_different_protocols_make_no_table(table: StudyTable, tmp_path: Path) -> None:
    run = _plan().runs[0]
    _write(tmp_path / run.folder, dict.fromkeys(["sky", "road", "car"], 0.5), PROTOCOL | {"images": 4})
    with pytest.raises(InputError, match="2 protocols"):
        collect(_plan(), tmp_path, "command")
    (tmp_path / run.folder / "scores.json").write_text("{")
    with pytest.raises(InputError, match="scores.json: damaged"):
        collect(_plan(), tmp_path, "command")


def test_a_protocol_that_names_its_defaults_is_the_same(table: StudyTable, tmp_path: Path) -> None:
    run = _plan().runs[0]
    same = PROTOCOL | {"scales": [1.0], "models": 1, "selected": None}
    _write(tmp_path / run.folder, dict.fromkeys(["sky", "road", "car"], 0.5), same)
    assert collect(_plan(), tmp_path, "command").protocol == table.protocol
    _write(tmp_path / run.folder, dict.fromkeys(["sky", "road", "car"], 0.5), PROTOCOL | {"flop": 1})
    with pytest.raises(InputError, match=r"scores.json: damaged \(1 validation error for Protocol"):
        collect(_plan(), tmp_path, "command")


@pytest.mark.parametrize("study", ["ablation", "labels"])
def test_the_papers_figures_stand_beside_its_own_task_only(study: str, tmp_path: Path) -> None:
    plan = _plan(study, "cityscapes:b", "gta5:a")
    for run in plan.runs:
        _write(tmp_path / run.folder, dict.fromkeys(CITYSCAPES.names, 0.5), PROTOCOL | {"num_classes": 19})
    text = markdown(collect(plan, tmp_path, "command"))
    if study == "ablation":
        assert text.count("UDAS paper") == 6
        line = next(line for line in text.splitlines() if "UDAS paper, 0 labels" in line)
        assert line.endswith("| – | 43.9 |")
        line = next(line for line in text.splitlines() if line.startswith("| *ST + UDA, UDAS paper*"))
        assert line.endswith("| 44.4 |")
        assert "| *ST + DA + SSL, UDAS paper* | 95.4 |" in text
    else:
        assert "| *UDAS, UDAS paper* | – | 43.9 |" in text  # the paper has no 20
    synthia = collect(_plan(study, "cityscapes:b", "synthia:a"), tmp_path, "command")
    assert "paper" not in markdown(synthia)


def _collected(study: Study, source: str, labels: tuple[int, ...], folder: Path) -> StudyTable:
    task = Task(source, "cityscapes:b", "translated:gan", changes=Changes(small=(32, 48), steps=60))
    plan = plan_study(study, task, seeds=(0,), num_labels=labels)
    for run in plan.runs:
        _write(folder / run.folder, dict.fromkeys(CITYSCAPES.names, 0.5), PROTOCOL | {"num_classes": 19})
        if run.row.scored_on:
            score = json.loads((folder / run.folder / "scores.json").read_text())["phases"]["self_training"]
            (folder / run.folder / run.scores_file).write_text(json.dumps(score | {"miou": 0.3}))
    return collect(plan, folder, "command")


@pytest.mark.parametrize(
    ("study", "labels", "lines"),
    [
        ("networks", (2975,), {"FCN": "68.0", "DeepLabV3+": "75.0"}),
        ("gap", (2975,), {"Source": "30.1", "Source → target": "36.2", "Target": "74.9"}),
        (
            "methods",
            (0,),
            {"CyCADA": "39.5", "AdaptSegNet": "42.4", "AdvEnt": "45.5", "Seg-Uncertainty": "48.3"},
        ),
        ("labels", (2975, 100), {"Supervised": "69.1", "UDAS": "63.5"}),
        ("parts", (100,), {"UDAS": "55.6"}),
    ],
)
def test_published_lines_stand_below_ours(
    study: Study, labels: tuple[int, ...], lines: dict[str, str], tmp_path: Path
) -> None:
    text = markdown(_collected(study, "gta5:a", labels, tmp_path))
    for name, miou in lines.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| *{name}, UDAS paper* |"))
        assert line.split("|")[-2 if study != "labels" else 2].strip() == miou
    if study == "networks":
        assert "| pixel accuracy | mIoU |" in text
        assert "| 94.7 | 68.0 |" in text
    if study == "gap":
        assert "| Source | " in text
        assert "| **30.0** |" in text  # of the source, the target's being 50.0
    if study == "methods":
        assert "| *Seg-Uncertainty, first stage, its own paper* |" in text
    if study == "parts":
        assert text.count("paper") == 1  # not beside what is no published form


def test_synthia_has_its_own_means_in_every_table(tmp_path: Path) -> None:
    table = _collected("ddm", "synthia:a", (100,), tmp_path)
    text = markdown(table)
    assert "| mIoU | mIoU synthia16 | mIoU synthia13 |" in text
    assert "| **50.0** | 25.0 | 25.0 |" in text
    of_13 = text[text.index("| Labelled target images, mIoU synthia13 | 100 |") :]
    assert "| DDM | 25.0 |" in of_13
    assert "| *DDM, DDM paper* | 68.4 |" in of_13
    assert text.count("DDM paper") == 2  # Supervised and DDM over 13 classes, not their variants
    assert csv_text(table).splitlines()[0].endswith(",mIoU,mIoU synthia16,mIoU synthia13")
    assert StudyTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_parts_are_shown_as_differences_from_the_whole(tmp_path: Path) -> None:
    lines = markdown(_collected("parts", "camvid:a", (20,), tmp_path)).splitlines()
    assert lines[:3] == ["|  | mIoU | − UDAS |", "| --- | ---: | ---: |", "| UDAS, 20 labels | 50.0 |  |"]
    assert "| UDAS without adversary, 20 labels | 50.0 | +0.0 |" in lines


@pytest.mark.parametrize(
    ("rows", "rounding"),
    [
        (paper.SIZES, 0.051),
        (paper.NETWORKS, 0.51),  # classes to two digits
        (paper.GAP, 0.051),
        (paper.ABLATION, 0.051),
        (paper.METHODS, 0.051),
        ({"DeepLabV2": (paper.SUPERVISED, paper.LABELS["UDAS"]["supervised"][2975])}, 0.051),
    ],
)
def test_published_means_are_those_of_their_classes(
    rows: dict[str, tuple[tuple[float, ...], float]], rounding: float
) -> None:
    for iou, miou in rows.values():
        assert len(iou) == len(CITYSCAPES)
        assert statistics.mean(iou) == pytest.approx(miou, abs=rounding)


def test_the_ablation_ends_where_the_labels_begin() -> None:
    assert paper.ABLATION["ST + DA + SSL"][1] == paper.LABELS["UDAS"]["udas"][2975]


def test_step_times_are_medians_and_a_killed_run_s_cut_line_does_not_stop_the_table(tmp_path: Path) -> None:
    plan = _plan()
    for run in plan.runs:
        _write(tmp_path / run.folder, {"sky": 0.5, "road": 0.5, "car": 0.5})
    cut, damaged = (tmp_path / plan.runs[number].folder / "timing.jsonl" for number in (0, 1))
    lines = "".join(f'{{"step": {step}, "seconds": {2.0 + step}}}\n' for step in range(3))
    cut.write_text(lines + '{"step": 3, "sec')
    by_row = {row.name: row.step_seconds for row in collect(plan, tmp_path, "").rows}
    assert by_row.pop(plan.runs[0].row.title) == [3.0]
    assert not any(by_row.values())  # the others have recorded none
    damaged.write_text(lines + '{"step": 3, "sec\n')
    with pytest.raises(InputError, match=r"timing\.jsonl line 4: damaged"):
        collect(plan, tmp_path, "")
