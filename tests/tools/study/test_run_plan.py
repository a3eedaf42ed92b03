"""The plan of the runs behind the committed tables: each once, with the passes that its method makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import get_recipe

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import accuracy
import run_plan


def test_baselines_make_a_pass_for_each_domain() -> None:
    assert run_plan.passes(SupervisedConfig(), labelled=False) == 1
    assert run_plan.passes(SupervisedConfig(domain="both"), labelled=True) == 2


def test_forwards_of_teachers_are_counted_as_a_third() -> None:
    config = (
        get_recipe("udas").stages[1].objective
    )  # three views of the teacher, the student, the source, and three views of the source without gradients and with
    assert run_plan.passes(config, labelled=False) == pytest.approx(3 / 3 + 1 + 1 + 3 / 3 + 3)


@pytest.fixture(scope="module")
def found() -> list[run_plan.PlannedRun]:
    return run_plan.planned_runs([0, 1], "data", Path("no-such-folder/runs"))


def test_a_run_of_several_tables_is_planned_once(found: list[run_plan.PlannedRun]) -> None:
    assert len({run.folder for run in found}) == len(found)
    tables = {table for run in found for table in run.tables}
    assert tables == {
        "streets",
        *accuracy.STUDIES,
        *accuracy.PRECISIONS,
    }
    shared = {run.folder.name: run.tables for run in found if len(run.tables) > 1}
    assert "ablation-day-dusk" in shared["no_adaptation-seed-0"]
    assert {"labels-day-dusk", "methods-day-dusk"} <= {*shared["udas-lab-20-labels-seed-1"]}
    assert not any(run.complete for run in found)


def test_the_sum_counts_every_run_once(
    monkeypatch: pytest.MonkeyPatch, found: list[run_plan.PlannedRun]
) -> None:
    monkeypatch.setattr(run_plan, "seconds_per_pass", lambda *_: 0.36)
    dusk = [run for run in found if "baselines-day-dusk" in run.tables]
    dusk = [run for run in dusk if run.recipe.name != "online_self_training"]
    # Steps of one pass and of two, and the validation images in batches of four at a third of a pass. Joint begins
    # with the source alone, which is counted once.
    validation = 101 / 4 / 3
    hours = [(passes + validation) * 0.36 / 3600 for passes in (800, 1300, 500 * 2)]
    assert [run.core_hours for run in dusk] == pytest.approx([*hours, *hours, hours[0], hours[0]])
    total = sum(run.core_hours for run in dusk)
    assert f"{total:15.1f}  all 8 runs: {total / 2:.1f} hours on 2 cores" in run_plan.show(dusk, jobs=2)


def test_no_run_is_made_twice_for_a_second_target() -> None:
    plans = accuracy.plans("baselines-rendered-camvid", [0, 1], "data", Path("runs"))
    first, second = ({run.folder: run for run in plans[name].runs} for name in ("camvid", "camvid-drives"))
    assert first.keys() & second.keys() == {"no_adaptation-seed-0", "no_adaptation-seed-1"}
    other = second["joint-50-labels-camvid-drives-seed-1"]
    assert other.start is not None
    assert other.start.folder == "no_adaptation-seed-1"
    assert other.data.target == "camvid-drives:data/camvid"
    assert "--from runs/x/no_adaptation-seed-1" in " ".join(other.command("runs/x/joint"))


@pytest.mark.slow
@pytest.mark.parametrize("name", accuracy.STUDIES)
def test_every_row_that_sees_the_source_begins_with_the_source_alone(name: str) -> None:
    """All methods have the same budget: 1300 steps, of which the source alone has the first 800."""
    plans = accuracy.plans(name, [0], "data", Path("runs"))
    for run in [run for table, plan in plans.items() if table != "random" for run in plan.runs]:
        phases: dict[str, int] = {}
        for phase in run.recipe().phases():
            network = phase.stage.network
            phases[network] = phases.get(network, 0) + phase.steps
        if run.start is not None:
            assert set(phases.values()) == {500}, run.folder
            assert run.start.folder == "no_adaptation-seed-0"
            assert run.task.weights is None
        else:
            assert phases == {"main": 800 if run.row.recipe == "no_adaptation" else 1300}, run.folder
            assert run.task.weights
