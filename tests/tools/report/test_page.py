"""HTML report: contents of the page, what it never loads or runs, and the folders that are refused."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe, list_recipes, override, small
from udas_fast.tools.report import read_run, read_runs, write_report
from udas_fast.tools.report.pictures import ALL_BYTES
from udas_fast.tools.report.read import POINTS, Series, read_run_yaml

VOID = {"meta", "img"}
HOSTILE = "<script>alert(1)</script>\"' onload=x \ud800&"


class Page(HTMLParser):
    """Parses a page, insists on balanced tags, and collects text, attributes and tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def sections(self) -> list[str]:
        return [value for name, value in self.attributes if name == "id"]


@pytest.fixture(scope="session")
def trained(camvid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three phases; tests copy it."""
    run = tmp_path_factory.mktemp("runs") / "first"
    recipe = override(small(get_recipe("udas"), size=(32, 48), steps=6, batch_size=2), ["model.width=4"])
    train, val = (open_dataset(f"camvid:{camvid_root}", split) for split in ("train", "val"))
    domains = Domains(source=train, labelled=train, unlabelled=train, val=val)
    Trainer(recipe, domains, run_dir=run, device="cpu").fit()
    return run


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the finished run under another name, without its pseudo-labels."""

    def make(name: str) -> Path:
        run = shutil.copytree(trained, tmp_path / name, ignore=shutil.ignore_patterns("*-pseudo.png"))
        shutil.rmtree(run / "pseudo_labels")
        return run

    return make


def _pseudo_labels(run: Path, name: str, classes: list[str], **change: object) -> None:
    count = len(classes)
    content = {
        "phase": name,
        "classes": classes,
        "threshold": [0.5] * count,
        "histogram": [[[0] * 32 + [7] * 32, [3] * 32 + [0] * 32]] * count,
        "images": 4,
        "kept_share": [0.7, None] + [0.7] * (count - 2),
        "kept_share_all": 0.7123,
        "accuracy": [0.9] * count,
        "accuracy_all": 0.9456,
        "labelled": True,
    }
    folder = run / "pseudo_labels" / name
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({**content, **change}))


def test_scores_during_the_run_are_a_curve(make_run: Callable[..., Path], tmp_path: Path) -> None:
    one, other, plain = (make_run(name) for name in ("one", "other", "plain"))
    for run, best in ((one, 6), (other, 0)):
        lines = [{"step": i, "phase": "adapt", "miou": i / 20, "best": i == best} for i in (3, 6, 9)]
        (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report([one, other, plain], tmp_path / "page.html"))
    assert "miou-by-step" in page.sections
    assert "one: last 45" in page.texts
    (kept,) = (text for text in page.texts if "best.safetensors" in text)
    assert kept.startswith("one, best.safetensors: 30.0 % at step 6, selected on these images")
    assert "miou-by-step" not in Page(write_report([plain], tmp_path / "plain.html")).sections


def test_the_page_of_one_run(trained: Path) -> None:
    page = Page(write_report([trained], trained.parent / "first.html"))
    scores = json.loads((trained / "scores.json").read_text())["phases"]
    final = scores["self_training.2"]
    assert f"mIoU {100 * final['miou']:.1f} %" in page.texts
    for value in final["iou"].values():
        assert ("–" if value is None else f"{100 * value:.1f}") in page.texts
    matrix = np.array(final["confusion_matrix"])
    for i, j in ((0, 0), (3, 4), (10, 1)):
        names = list(final["iou"])
        share = 100 * matrix[i, j] / matrix[i].sum()
        tip = f"{names[i]} predicted as {names[j]}: {share:.1f} % of {names[i]}, {matrix[i, j]:,} pixels"
        assert tip in page.texts
    assert page.sections == [
        "summary",
        "protocol",
        "curves",
        "miou-by-phase",
        "iou-by-class",
        "confusion",
        "reliability",
        "samples",
        "pseudo-labels",
        "speed",
        "environment",
        "recipe",
    ]
    for name in ("self_training.1", "self_training.2"):
        report = json.loads((trained / "pseudo_labels" / name / "report.json").read_text())
        assert f"{100 * report['kept_share_all']:.1f}" in page.texts
    assert "notes" not in [value for name, value in page.attributes if name == "class"]
    losses = set(json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])) - {
        "step",
        "phase",
        "lr",
    }
    assert losses
    assert {*losses, "learning rate"} <= set(page.texts)
    assert (trained / "run.yaml").read_text() in page.texts
    assert "threads" in page.texts


def test_the_page_loads_and_runs_nothing(trained: Path) -> None:
    page = Page(write_report([trained], trained.parent / "alone.html"))
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert value.startswith(("data:image/jpeg;base64,", "#"))
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in page.source
    pictures = [value for name, value in page.attributes if name == "src"]
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0].split(",")[1])))
    assert picture.width <= 1600


def test_the_same_runs_give_the_same_bytes(copy: Callable[[str], Path], tmp_path: Path) -> None:
    run = copy("run")
    one, two = write_report([run]), write_report([run], tmp_path / "two.html")
    assert one == run / "report.html"
    assert one.read_bytes() == two.read_bytes()


def test_two_runs_share_charts(trained: Path, copy: Callable[[str], Path], tmp_path: Path) -> None:
    other = copy("second")
    scores = json.loads((other / "scores.json").read_text())
    last = scores["phases"]["self_training.2"]
    last["confusion_matrix"] = np.diag(range(1, 12)).tolist()  # every pixel is right
    (other / "scores.json").write_text(json.dumps(scores))
    page = Page(write_report([trained, other], tmp_path / "both.html"))
    assert "100.0" in page.texts
    curves = [name for name, phases in read_run(trained).curves.items() if "adaptation" in phases]
    for run in ("first", "second"):
        assert sum(text.startswith(f"{run} · adaptation: last") for text in page.texts) == len(curves)
    assert {"line c0", "line c1", "bar c0", "bar c1"} <= {v for name, v in page.attributes if name == "class"}
    with pytest.raises(InputError, match=r"--out: found none for 2 runs"):
        write_report([trained, other])


def test_other_protocols_are_told_apart(copy: Callable[[str], Path], tmp_path: Path) -> None:
    one, two = copy("one"), copy("two")
    text = (two / "scores.json").read_text()
    (two / "scores.json").write_text(text.replace('"split": "val"', '"split": "test"'))
    page = Page(write_report([one, two], tmp_path / "both.html"))
    assert any("cannot be compared" in text for text in page.texts)


def test_hostile_files_stay_text(copy: Callable[[str], Path], tmp_path: Path) -> None:
    run = copy("<b>run & co")
    classes = [HOSTILE, *map(str, range(10))]
    _pseudo_labels(run, "1", classes, phase=HOSTILE)
    scores = json.loads((run / "scores.json").read_text())
    phases = {HOSTILE + name: value for name, value in scores["phases"].items()}
    for value in phases.values():
        value["iou"] = dict.fromkeys(classes, 0.5)
        value["protocol"]["dataset"] = HOSTILE
    (run / "scores.json").write_text(json.dumps({**scores, "phases": phases}))
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "list": [HOSTILE]}))
    metrics = (run / "metrics.jsonl").read_text()
    line = {"step": 9, "phase": HOSTILE, "lr": 1, HOSTILE: 1}
    (run / "metrics.jsonl").write_text(metrics + json.dumps(line) + "\n")
    recipe = (run / "run.yaml").read_text().replace("name: udas", "name: </pre><script>alert(2)</script>")
    (run / "run.yaml").write_text(recipe)
    (run / "pictures" / "<img src=x onerror=y>.png").write_bytes((run / "pictures/val.png").read_bytes())
    page = Page(write_report([run], tmp_path / "page.html"))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.tags.count("img") == 2
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any("<script>alert(1)</script>" in text for text in page.texts)


def test_an_unfinished_run_says_what_is_missing(copy: Callable[[str], Path]) -> None:
    run = copy("killed")
    for name in ("scores.json", "model.safetensors", "environment.json"):
        (run / name).unlink()
    (run / "pictures/val.png").write_bytes(b"half a pict")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "pha')
    read = read_run(run)
    assert (read.recorded_steps, read.recipe.steps) == (6, 6)
    assert read.final is None
    page = Page(write_report([run]))
    for text in (
        "The run is not finished",
        "incomplete",
        "There are no scores",
        "environment was not recorded",
    ):
        assert any(text in t for t in page.texts), text
    assert "This picture cannot be read." in page.texts
    assert not {"confusion", "iou-by-class", "protocol"} & set(page.sections)


def test_a_run_of_which_only_its_settings_are_there(copy: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(copy("run") / "run.yaml", tmp_path / "new")
    page = Page(write_report([tmp_path / "new"]))
    assert page.sections == ["summary", "recipe"]
    assert "No step has been recorded yet." in page.texts
    assert "0 of 6" in page.texts


def test_steps_without_a_learning_rate(copy: Callable[[str], Path]) -> None:
    run = copy("run")
    (run / "metrics.jsonl").write_text('{"step": 4, "phase": "x", "loss": 0.5}\n')
    page = Page(write_report([run]))
    assert "run · x: last 0.5" in page.texts
    assert "learning rate" not in page.texts
    assert "5 of 6" in page.texts


def test_pseudo_labels_by_round(copy: Callable[[str], Path]) -> None:
    run = copy("run")
    classes = list(read_run(run).final.classes)
    for name in ("self_training.10", "self_training.2"):
        _pseudo_labels(run, name, classes)
    (run / "pseudo_labels/self_training.11").mkdir()  # not written yet
    shutil.copy(run / "pictures/val.png", run / "pictures/self_training.2-pseudo.png")
    for name in ("translation-0", "worst"):
        shutil.copy(run / "pictures/val.png", run / f"pictures/{name}.png")
    assert [r.phase for r in read_run(run).label_reports] == ["self_training.2", "self_training.10"]
    page = Page(write_report([run]))
    assert {"pseudo-labels", "translation", "worst-images"} <= set(page.sections)
    assert page.texts.count("71.2") == page.texts.count("94.6") == 2
    assert "sky: 224 kept, 96 dropped, threshold 0.5" in page.texts
    assert page.tags.count("img") == 4


def test_many_large_pictures_stay_small(copy: Callable[[str], Path], tmp_path: Path) -> None:
    run = copy("run")
    noise = np.random.default_rng(0).integers(0, 256, (200, 700, 3), dtype=np.uint8)
    for i in range(26):
        Image.fromarray(noise).save(run / f"pictures/{i}.png", compress_level=1)
    page = write_report([run], tmp_path / "page.html")
    assert page.stat().st_size < 5_000_000
    assert "3 more in run/pictures" in page.read_text()
    assert ALL_BYTES * 4 / 3 < 5_000_000


@pytest.mark.parametrize("name", list_recipes())
def test_phases_are_those_of_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"recipe": recipe.to_dict(), "run": {}}))
    _, document = read_run_yaml(tmp_path)
    expected = {p.name: range(p.first_step, p.first_step + p.steps) for p in recipe.phases()}
    assert document.recipe.phases() == expected
    assert document.recipe.steps == recipe.steps


def test_a_long_series_is_kept_as_means() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    series = Series()
    for step, value in enumerate(values, 100):
        series.add(step, value)
    points = series.points
    assert POINTS / 2 <= len(points) <= POINTS
    assert (series.first, series.last, series.count) == (100, 5099, 5000)
    assert series.total == pytest.approx(values.sum())
    steps = np.arange(100, 5100)
    for group, (step, mean) in zip(np.unique(steps // series.span), points, strict=True):
        inside = steps // series.span == group
        assert step == pytest.approx(steps[inside].mean())
        assert mean == pytest.approx(values[inside].mean())
    series.coarsen(10_000)
    assert series.points == [(pytest.approx(steps.mean()), pytest.approx(values.mean()))]


def test_runs_of_one_name_are_told_apart(trained: Path, tmp_path: Path) -> None:
    paths = [shutil.copytree(trained, tmp_path / parent / "run") for parent in ("a", "b")]
    assert list(read_runs(paths)) == ["a/run", "b/run"]
    with pytest.raises(InputError, match="twice"):
        read_runs([paths[0], tmp_path / "b/../a/run"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.yaml", "recipe: [", "run.yaml: damaged"),
        ("run.yaml", "recipe: {name: 3}", "run.yaml: damaged"),
        ("run.yaml", "just text", "run.yaml: damaged"),
        (
            "run.yaml",
            "recipe: {name: x, stages: [{name: a, steps: 1, rounds: 20000}]}\nrun: {}",
            "rounds: input",
        ),
        ("run.yaml", "\x00", "run.yaml: damaged"),
        ("scores.json", "{", "scores.json: damaged"),
        ("scores.json", "[]", "scores.json: damaged"),
        ("scores.json", '{"phases": {"x": {"iou": {}}}}', "scores.json: damaged"),
        ("scores.json", "[" * 100_000, "scores.json: damaged"),
        ("environment.json", "[1]", "environment.json: found list"),
        ("metrics.jsonl", '{"step": 0, "phase": "x", "lr": 1}\nnonsense\n', "metrics.jsonl line 2: damaged"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl line 1: found list"),
        ("metrics.jsonl", '{"step": -1, "phase": "x"}\n', "metrics.jsonl line 1: found step -1"),
        ("metrics.jsonl", '{"step": 0, "phase": "x", "lr": NaN}\n', "'lr' nan, expected a finite number"),
        ("timing.jsonl", '{"step": 0, "seconds": "long"}\n', "timing.jsonl line 1: found 'seconds' 'long'"),
    ],
)
def test_damaged_files_are_named_in_one_sentence(
    copy: Callable[[str], Path], name: str, content: str, words: str
) -> None:
    run = copy("run")
    (run / name).write_text(content)
    with pytest.raises(InputError) as caught:
        write_report([run])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_counts_that_cannot_be(copy: Callable[[str], Path]) -> None:
    run = copy("run")
    scores = json.loads((run / "scores.json").read_text())
    for count, words in ((-1, "a negative count"), (10**30, "damaged")):
        scores["phases"]["adaptation"]["confusion_matrix"][0][0] = count
        (run / "scores.json").write_text(json.dumps(scores))
        with pytest.raises(InputError, match=words):
            read_run(run)


def test_pseudo_labels_of_other_shapes_are_refused(copy: Callable[[str], Path]) -> None:
    run = copy("run")
    _pseudo_labels(run, "1", ["road", "sky"], threshold=[0.5])
    with pytest.raises(InputError, match=r"report.json: damaged .*threshold has 1 entries for 2 classes"):
        read_run(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="no run"):
        write_report([tmp_path / "missing"])


def test_a_page_that_cannot_be_written(copy: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_report([copy("run")], tmp_path / "no/folder/page.html")


def test_every_mean_says_over_which_classes_it_is(copy: Callable[[str], Path]) -> None:
    run = copy("run")
    scores = json.loads((run / "scores.json").read_text())
    for phase in scores["phases"].values():
        for i, row in enumerate(phase["confusion_matrix"]):
            phase["confusion_matrix"][i] = [0, *row[1:]] if i else [0] * len(row)
    (run / "scores.json").write_text(json.dumps(scores))
    page = write_report([run]).read_text()
    classes = list(scores["phases"]["adaptation"]["iou"])
    note = read_run(run).final.mean_note
    assert note.startswith("mean over ")
    assert f"absent: {classes[0]}" in note
    assert page.count(f"mIoU: {note}") >= 1
