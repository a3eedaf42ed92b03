"""Plans of studies are data: rows of the paper and of all methods, equal steps, one folder for one run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import typer

from udas_fast import cli
from udas_fast.cli.options import parse_size, read_changes
from udas_fast.errors import InputError
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import Changes, Recipe, Stage, StreamBatchSize, all_recipes, get_recipe, has_key
from udas_fast.tools.study import StudyPlan, StudyRow, Task, plan_paper, plan_study
from udas_fast.tools.study import rows as rows_module
from udas_fast.tools.study.plan import TranslationRun

TASK = Task("camvid:day", "camvid:dusk", changes=Changes(small=(32, 48), steps=100))


def _plan(study: str, *, task: Task = TASK, seeds: tuple[int, ...] = (0, 1), **changes: object) -> StudyPlan:
    num_labels = changes.pop("num_labels", (50, 20, 0))
    return plan_study(study, dataclasses.replace(task, **changes), seeds=seeds, num_labels=num_labels)


def test_ablation_has_the_papers_rows() -> None:
    plan = _plan("ablation", seeds=(0,))
    assert [row.title for row in plan.rows] == [
        "No adaptation",
        "UDA",
        "ST",
        "ST + UDA",
        "ST + DA + SSL, 0 labels",
        "Joint, 50 labels",
        "ST + DA + SSL, 50 labels",
    ]
    runs = {run.row.title: run for run in plan.runs}
    assert runs["No adaptation"].recipe().streams[0] == {"source"}  # the target is never seen
    assert runs["ST"].recipe().streams[0] == {"source", "unlabelled"}
    objectives = {title: [stage.objective for stage in run.recipe().stages] for title, run in runs.items()}
    assert objectives["ST"][0].translate == "lab"
    for title, translate in (("UDA", "none"), ("ST + UDA", "lab")):
        (adaptation,) = objectives[title]
        assert (adaptation.translate, adaptation.mixing) == (translate, None)
        assert adaptation.adversary.weights[0] > 0
        assert adaptation.agreement.weight > 0
    assert [o.translate for o in objectives["ST + DA + SSL, 0 labels"]] == ["lab", "lab"]
    assert {title: run.data.num_labels for title, run in runs.items() if run.data.num_labels} == {
        "Joint, 50 labels": 50,
        "ST + DA + SSL, 50 labels": 50,
    }


def test_labels_study_has_no_row_of_the_baselines_without_labels() -> None:
    plan = _plan("labels", num_labels=(0, 20, 50))
    assert [(row.recipe, row.num_labels) for row in plan.rows] == [
        *(("supervised", 50), ("supervised", 20), ("joint", 50), ("joint", 20)),
        *(("udas", 50), ("udas", 20), ("udas", 0)),
        *(("online_self_training", 50), ("online_self_training", 20), ("online_self_training", 0)),
    ]
    assert all(run.data.source is None for run in plan.runs if run.row.recipe == "supervised")


def _fitting(recipe: Recipe, counts: tuple[int, ...]) -> set[int]:
    """Numbers of labels that a recipe can train with: none where it never sees them, all but 0 where it needs them."""
    needs, uses = recipe.streams
    if "labelled" in needs:
        return {*counts} - {0}
    return {*counts} if "labelled" in uses else {0} & {*counts}


@pytest.mark.parametrize("counts", [(0, 20, 50), (20,), (0,)])
def test_methods_study_has_every_recipe_with_the_labels_that_it_can_use(counts: tuple[int, ...]) -> None:
    recipes = {name: recipe for name, recipe in all_recipes().items() if recipe.trains == "segmentation"}
    plan = _plan("methods", num_labels=counts, translate="translated:runs/gan")
    assert not plan.left_out
    for name, recipe in recipes.items():
        rows = [row for row in plan.rows if row.recipe == name]
        assert {row.num_labels for row in rows} == _fitting(recipe, counts)
        assert len(rows) == len(_fitting(recipe, counts))
        title = recipe.title or name
        assert all(row.title == title + f", {row.num_labels} labels" * bool(row.num_labels) for row in rows)
    assert {row.recipe for row in plan.rows} <= recipes.keys()
    assert len({row.title for row in plan.rows}) == len(plan.rows)
    groups = [row.num_labels for row in plan.rows if row.recipe in rows_module.ORDER]
    assert list(dict.fromkeys(groups)) == sorted(counts, key=lambda n: (n > 0, -n))  # without labels first
    assert groups == sorted(groups, key=lambda n: (n > 0, -n))


def test_cycada_needs_translated_images() -> None:
    plan = _plan("methods")
    assert "CyCADA is left out" in plan.left_out
    assert "cycada" not in {row.recipe for row in plan.rows}
    assert not _plan("methods", num_labels=(20,)).left_out
    translated = _plan("methods", translate="translated:runs/gan")
    (run,) = (run for run in translated.runs if (run.row.recipe, run.seed) == ("cycada", 0))
    assert run.data.source == "translated:runs/gan"


RESULTS = Path(__file__).resolve().parents[3] / "benchmarks/results"


@pytest.mark.parametrize(
    "path",
    [path for study in rows_module.STUDIES for path in sorted(RESULTS.glob(f"{study}-*.json"))],
    ids=lambda path: path.stem,
)
def test_rows_are_those_of_the_committed_tables(path: Path) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))["study"]
    counts = tuple(sorted({row["labels"] for row in table["rows"]}, reverse=True))
    plan = _plan(table["study"], translate=table["translate"], num_labels=counts)
    committed = [(row["name"], row["recipe"], row["labels"], row["translated"]) for row in table["rows"]]
    measured = {recipe for _, recipe, *_ in committed}  # a recipe may be younger than the table
    younger = {
        "joint",
        "udas_tuned",
        "udas_mrnet",
        "dacs",
        "daformer",
        "mic",
        "vfm_uda",
        "fixmatch",
        "mrnet",
        "noisy_student",
        "meta_pseudo_labels",
        "vat",
        "uda_xie",
        "mixmatch",
        "unimatch_v2",
        "online_self_training",
    }
    assert {row.recipe for row in plan.rows} & {*rows_module.ORDER} - measured <= younger
    assert committed == [
        (row.title, row.recipe, row.num_labels, row.translated) for row in plan.rows if row.recipe in measured
    ]


def test_recipes_in_files_join_the_methods(tmp_path: Path) -> None:
    files = []
    for name, base in (("mine", "uda"), ("mine too", "udas"), ("taught", "supervised")):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(get_recipe(base).to_yaml().replace(f"name: {base}", f"name: {name}", 1))
    joined = _plan("methods", num_labels=(20, 0), recipes=tuple(map(str, files)), settings=("mine:ema=0.9",))
    before = _plan("methods", num_labels=(20, 0)).rows
    assert joined.rows[: len(before)] == before
    titles = ["mine", "mine too, 20 labels", "mine too", "taught, 20 labels"]
    assert [row.title for row in joined.rows[len(before) :]] == titles
    run = joined.runs[len(before)]
    assert (run.folder, run.recipe().name, run.recipe().ema) == ("mine-seed-0", "mine", 0.9)
    assert run.recipe().stages[0].steps == 100
    given = typer.main.get_command(cli.app).commands["train"].make_context("train", run.command("out")[2:])
    assert (given.params["recipe"], given.params["recipe_file"]) == (None, files[0])
    assert len({run.folder for run in joined.runs}) == len(joined.runs)


@pytest.mark.parametrize(
    ("study", "base", "sentence"),
    [
        ("methods", "udas", "found the name 'udas' of another recipe, expected a `name` of its own"),
        ("methods", "cyclegan", "found one that trains translation"),
        ("labels", "udas", "found the labels study, expected methods"),
    ],
)
def test_recipes_in_files_that_cannot_join(tmp_path: Path, study: str, base: str, sentence: str) -> None:
    (tmp_path / "mine.yaml").write_text(get_recipe(base).to_yaml())
    with pytest.raises(InputError, match=f"--recipe .*mine.yaml: {sentence}"):
        _plan(study, recipes=(str(tmp_path / "mine.yaml"),))


@pytest.fixture
def new_recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe beside the package's whose stage "adaptation" has an objective of another kind."""
    stage = Stage("adaptation", SupervisedConfig(domain="source"), steps=100)
    recipe = Recipe(name="new", title="New, with a comma", summary="", stages=(stage,))
    known = all_recipes()
    monkeypatch.setattr(rows_module, "all_recipes", lambda: {"new": recipe, **known})
    monkeypatch.setattr(rows_module, "get_recipe", lambda name: recipe if name == "new" else get_recipe(name))
    return recipe


def test_a_new_recipe_joins_the_methods_without_an_entry(new_recipe: Recipe) -> None:
    plan = _plan("methods", num_labels=(20, 0))
    assert plan.rows[-1] == StudyRow(new_recipe.title, "new", 0, None)
    setting = "stages.adaptation.objective.adversary.width=4"
    plan = _plan("methods", settings=(setting, "stages.adaptation.optimizer.lr=0.5"))
    recipes = {run.row.recipe: run for run in plan.runs}
    assert recipes["new"].settings == ("stages.adaptation.optimizer.lr=0.5",)  # it lacks the other key
    assert recipes["new"].recipe().stages[0].optimizer.lr == 0.5
    assert setting in recipes["uda"].settings


def test_a_copy_of_a_recipe_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = all_recipes()
    copy = dataclasses.replace(known["uda"], name="copy")
    monkeypatch.setattr(rows_module, "all_recipes", lambda: {"copy": copy, **known})
    rows = rows_module._methods(TASK, (20, 0))
    assert rows[-1] == StudyRow("copy", "copy", 0, None)
    clash = dataclasses.replace(known["uda"], name="UDA")
    monkeypatch.setattr(rows_module, "all_recipes", lambda: {**known, "UDA": clash})
    with pytest.raises(InputError, match="recipe UDA: found the title 'UDA' of another recipe"):
        rows_module._methods(TASK, (20, 0))


def test_methods_study_shares_runs_with_the_others() -> None:
    methods = {run.folder: run for run in _plan("methods").runs}
    others = {run.folder: run for study in ("ablation", "labels") for run in _plan(study).runs}
    shared = methods.keys() & others.keys()
    names = ["no_adaptation", "uda", "udas-lab"]
    names += [f"{name}-{n}-labels" for name in ("supervised", "joint", "udas-lab") for n in (20, 50)]
    names += ["online_self_training", *(f"online_self_training-{n}-labels" for n in (20, 50))]
    assert shared == {f"{name}-seed-{seed}" for name in names for seed in (0, 1)}
    for folder in shared:
        assert methods[folder].command("out") == others[folder].command("out")
    assert len(methods) == len(_plan("methods").runs)


@pytest.mark.parametrize("translate", ["lab", "none"])
def test_methods_keep_their_own_numbers(translate: str) -> None:
    plan = _plan(
        "methods",
        translate=translate,
        settings=(
            "stages.adaptation.objective.adversary.width=4",
            "uda,udas:stages.adaptation.objective.agreement=null",
            "ddm:stages.student_2.optimizer.lr=0.5",
        ),
    )
    recipes = {run.row.title: run.recipe() for run in plan.runs}
    first = {title: recipe.stages[0].objective for title, recipe in recipes.items()}
    assert {first[title].agreement for title in ("UDA", "UDAS", "UDAS, 20 labels")} == {None}
    assert first["Seg-Uncertainty"].agreement.weight == 0.1
    assert {first[title].adversary.width for title in ("AdvEnt", "UDA", "Seg-Uncertainty")} == {4}
    assert first["FDA"].translate == "fda"
    assert first["DDM, 20 labels"].translate == "lab"
    assert first["UDAS"].translate == translate
    assert [stage.optimizer.lr == 0.5 for stage in recipes["DDM, 50 labels"].stages].index(True) == 5


def test_every_network_of_ddm_takes_the_steps_of_a_row() -> None:
    plan = _plan(
        "methods", num_labels=(20,), changes=Changes(small=(32, 48), steps=101)
    )  # not a multiple of its four rounds
    (ddm,) = (run.recipe() for run in plan.runs if (run.row.recipe, run.seed) == ("ddm", 0))
    for network in ("region", "sample", "student"):
        assert sum(stage.steps for stage in ddm.stages if stage.network == network) == 101
    assert plan.steps == 101


def test_at_full_size_every_method_takes_its_published_steps() -> None:
    assert _plan("methods", changes=Changes()).steps is None


@pytest.mark.parametrize("study", ["ablation", "labels"])
def test_every_run_takes_the_same_steps(study: str) -> None:
    plan = _plan(study)
    totals = {sum(stage.steps * stage.rounds for stage in run.recipe().stages) for run in plan.runs}
    assert totals == {plan.steps} == {100}
    full = _plan(study, changes=Changes())  # as written, the recipes of the labels study differ
    assert full.steps == (250_000 if study == "ablation" else None)
    with pytest.raises(InputError, match="optimisation steps: found .*expected the same number in every row"):
        _plan(study, settings=("stages.self_training.steps=7",))


def test_studies_share_the_runs_that_are_the_same() -> None:
    ablation = {run.folder: run for run in _plan("ablation").runs}
    labels = {run.folder: run for run in _plan("labels").runs}
    shared = ablation.keys() & labels.keys()
    names = ("udas-lab", "udas-lab-50-labels", "joint-50-labels")
    assert shared == {f"{name}-seed-{seed}" for name in names for seed in (0, 1)}
    for folder in shared:
        assert ablation[folder].command("out") == labels[folder].command("out")
    assert len(ablation) == len(_plan("ablation").runs)  # no two runs of a plan share a folder


def test_settings_reach_the_recipes_that_have_their_key() -> None:
    settings = ("model.width=4", "stages.source.optimizer.lr=0.5", "stages.self_training.rounds=1")
    plan = plan_study(
        "ablation",
        dataclasses.replace(TASK, settings=(*settings, "stages.self_training.steps=32")),
        seeds=(0,),
        num_labels=(20,),
    )
    recipes = {run.row.title: run.recipe() for run in plan.runs}
    assert {recipe.model.width for recipe in recipes.values()} == {4}
    assert recipes["ST"].stages[0].optimizer.lr == 0.5
    assert recipes["UDA"].stages[0].optimizer.lr != 0.5
    assert recipes["ST + DA + SSL, 20 labels"].stages[1].rounds == 1


def test_a_translated_folder_replaces_the_source_of_translated_rows() -> None:
    plan = _plan("ablation", translate="translated:runs/gan", seeds=(0,))
    sources = {run.row.title: run.data.source for run in plan.runs}
    assert sources["No adaptation"] == sources["UDA"] == "camvid:day"
    assert (
        sources["ST"] == sources["ST + UDA"] == sources["ST + DA + SSL, 50 labels"] == "translated:runs/gan"
    )
    left_out = ("translate=none", "translation=null")
    assert all(setting.endswith(left_out) for run in plan.runs for setting in run.settings)
    assert len({run.folder for run in plan.runs}) == 7


def test_commands_are_the_command_lines_own() -> None:
    from udas_fast.recipes import get_recipe, override, small

    train = typer.main.get_command(cli.app).commands["train"]
    for run in _plan("ablation", settings=("model.width=4",)).runs:
        _, _, *arguments = run.command("out")
        given = train.make_context("train", arguments).params
        recipe = small(get_recipe(given["recipe"]), size=parse_size(given["small"], ""), steps=given["steps"])
        assert override(recipe, given["settings"]) == run.recipe()
        assert (*given["sources"], given["target"], given["num_labels"], given["seed"]) == (
            *(run.data.source, run.data.target, str(run.data.num_labels)),
            run.seed,
        )


@pytest.mark.parametrize("small", [None, (32, 48)])
def test_changes_reach_every_run_and_its_command(small: tuple[int, int] | None) -> None:
    streams = StreamBatchSize(source=3, unlabelled=3)
    changes = Changes(small, (24, 40), steps=60, batch_size=2, stream_batch_size=streams, lr=0.1 + 0.2)
    plan = _plan("methods", changes=changes)
    assert plan.steps == 60
    train = typer.main.get_command(cli.app).commands["train"]
    names = ("small", "size", "steps", "batch_size", "lr")
    for run in plan.runs:
        recipe = run.recipe()
        assert recipe.input.source.size == (24, 40)
        assert recipe.stages[0].optimizer.lr == 0.1 + 0.2
        for stream, size in recipe.batch_sizes.items():
            assert size == (2 if stream == "labelled" else 3)
        given = train.make_context("train", run.command("out")[2:]).params
        asked = read_changes(**{name: given[name] for name in names})
        assert asked.apply(run.row.own_recipe) == changes.for_recipe(run.row.own_recipe).apply(
            run.row.own_recipe
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"translate": "lba"}, "--translate: found 'lba'.*did you mean 'lab'"),
        ({"translate": "none"}, "--translate: found none.*rows ST"),
        ({"changes": Changes(steps=2)}, "--steps: found 2, expected at least 3, one for each round of udas"),
        ({"num_labels": (-1,)}, "--num-labels: found -1"),
        ({"seeds": (1, 1)}, "--seeds: found 1,1"),
        ({"seeds": ()}, "--seeds: found none"),
        (
            {"settings": ("stages.self_trainig.steps=3",)},
            "key of stages in the ablation study: .*mean 'self_training'",
        ),
        (
            {"settings": ("stages.target.objective.auxiliary_weight=0",)},
            "key of stages in the ablation study",
        ),
        (
            {"settings": ("model.width.x=3",)},
            "found model.width, which has no keys, expected a key of the ablation",
        ),
        ({"settings": ("model.widht=3",)}, "did you mean 'width'"),
        ({"settings": ("uads:model.width=3",)}, "recipe: found 'uads'.*did you mean 'udas'"),
        ({"settings": ("ddm,fda:model.width=3",)}, "recipe of the ablation study: found 'ddm'"),
        (
            {"settings": ("no_adaptation:stages.self_training.steps=3",)},
            "key of stages: found 'self_training', expected one of source",
        ),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _plan("ablation", **changes)


def test_unknown_study() -> None:
    with pytest.raises(
        InputError, match="found 'lables', expected one of ablation, ddm, gap, labels, methods, networks"
    ):
        _plan("lables")


PAPER_TASK = Task("gta5:g", "cityscapes:c", "translated:gan", changes=Changes(size=(360, 640)))


def _paper(study: str, task: Task = PAPER_TASK) -> StudyPlan:
    return plan_study(study, task, seeds=(0,))


def test_sizes_are_the_recipes_own_and_a_smaller_one() -> None:
    full, small = (run.recipe().input for run in _paper("sizes").runs)
    assert (full.source.size, full.target.size) == ((720, 1280), (512, 1024))
    assert (small.source.size, small.target.size) == ((360, 640), (360, 640))
    plan = _paper("sizes")
    assert [row.title for row in plan.rows] == ["1280 × 720", "640 × 360"]
    assert plan.runs[1].folder == "uda-seed-0"  # that of the ablation
    halved = plan_study("sizes", TASK, seeds=(0,))
    assert [run.recipe().input.source.size for run in halved.runs] == [(32, 48), (16, 24)]
    with pytest.raises(InputError, match="--size: found 32x48"):
        plan_study("sizes", dataclasses.replace(TASK, changes=Changes((32, 48), (32, 48))), seeds=(0,))


def test_networks_and_gap_share_a_network() -> None:
    networks, gap = _paper("networks"), _paper("gap")
    models = [run.recipe().model for run in networks.runs]
    assert [(m.backbone, m.head) for m in models] == [("resnet50", "fcn"), ("resnet50", "deeplabv3plus")]
    assert all(run.data.source is None and run.data.num_labels == 2975 for run in networks.runs)
    assert {run.folder for run in gap.runs} == {networks.runs[1].folder}
    assert [row.scored_on for row in gap.rows] == ["gta5:g", "translated:gan", None]
    assert "translated source is left out" in _plan("gap").left_out
    with pytest.raises(InputError, match="--num-labels: found 0, expected a number from 1 in the gap study"):
        _plan("gap", num_labels=(0,))


@pytest.mark.parametrize(("source", "rounds"), [("gta5:g", 4), ("synthia:s", 3)])
def test_ddm_has_the_rounds_of_its_paper_and_both_ablations(source: str, rounds: int) -> None:
    plan = _paper("ddm", dataclasses.replace(PAPER_TASK, source=source))
    stages = {run.row.title: [stage.name for stage in run.recipe().stages] for run in plan.runs}
    assert stages["DDM, 2975 labels"] == ["region_1", "sample_1", "student_1"]
    assert len(stages["DDM, 500 labels"]) == 3 * rounds
    objectives = {run.row.title: [s.objective for s in run.recipe().stages] for run in plan.runs}
    for level, other in (("region", "sample"), ("sample", "region")):
        title = f"DDM with the {level}-level teacher alone, 100 labels"
        assert objectives[title][-1].teachers == (level,)
        assert sum(name.startswith(other) for name in stages[title]) == (other == "region")
    assert all(
        o.translate == "none"
        for o in objectives["DDM without style transfer, 100 labels"]
        if hasattr(o, "translate")
    )
    assert [row.num_labels for row in plan.rows if row.recipe == "supervised"] == [2975, 1000, 500, 200, 100]
    train = typer.main.get_command(cli.app).commands["train"]
    given = train.make_context("train", plan.runs[5].command("out")[2:]).params
    assert given["stages"] == "region_1,sample_1,student_1"


def test_every_part_changes_udas_and_keeps_its_steps() -> None:
    plan = _plan("parts", seeds=(0,), num_labels=(20,))
    whole, *parts = [run.recipe() for run in plan.runs]
    assert whole not in parts
    assert len(set(parts)) == len(parts)
    assert {recipe.steps for recipe in parts} == {100}
    mixing = {
        (r.stages[0].objective.mixing.paste, r.stages[0].objective.mixing.replace)
        for r in (whole, *parts)
        if r.stages[0].objective.mixing
    }
    assert len(mixing) == 4
    known = {setting.partition("=")[0] for _, settings in rows_module.PARTS for setting in settings}
    assert all(has_key(get_recipe("udas"), key) for key in known)
    assert plan.runs[0].folder == "udas-lab-20-labels-seed-0"  # that of the other studies


def test_the_paper_makes_a_run_of_several_studies_once() -> None:
    plans = plan_paper(PAPER_TASK, seeds=(0, 1))
    assert [plan.study for plan in plans] == list(rows_module.STUDIES)
    commands: dict[str, set[str]] = {}
    studies: dict[str, set[str]] = {}
    for plan in plans:
        for run in plan.runs:
            commands.setdefault(run.folder, set()).add(" ".join(run.command("out")))
            studies.setdefault(run.folder, set()).add(plan.study)
    assert all(len(found) == 1 for found in commands.values())
    assert len({*map(str, commands.values())}) == len(commands)
    assert studies["uda-seed-0"] == {"sizes", "ablation", "methods"}
    assert studies["udas-translated-100-labels-seed-1"] == {"labels", "parts"}
    counts = {plan.study: sorted({row.num_labels for row in plan.rows}) for plan in plans}
    assert counts["labels"] == [0, 100, 500, 1000, 2975]
    assert counts["ddm"] == [100, 200, 500, 1000, 2975]


def test_settings_of_the_translation_reach_it_alone() -> None:
    setting = "stages.translation.steps=7"
    task = dataclasses.replace(TASK, translate="translated:gan", settings=(f"cyclegan:{setting}",))
    plan = _plan("ablation", task=dataclasses.replace(task, makes_translation=True))
    assert not any(setting in run.settings for run in plan.runs)
    translation = TranslationRun(plan.task)
    assert translation.recipe().steps == 7
    assert translation.command()[-6:] == ["--set", setting, "--device", "auto", "--out", "gan"]
    with pytest.raises(InputError, match="recipe of the ablation study: found 'cyclegan'"):
        _plan("ablation", task=task)
