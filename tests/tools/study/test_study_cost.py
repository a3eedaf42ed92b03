"""Groups and costs of the methods study's rows: counted passes, networks in memory, and their table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from udas_fast.recipes import Changes, get_recipe
from udas_fast.testing import tiny
from udas_fast.tools.study import Task, plan_study
from udas_fast.tools.study.collect import RowScores, Spread, StudyTable, with_costs
from udas_fast.tools.study.cost import Cost, count_passes, step_cost
from udas_fast.tools.study.rows import group_of
from udas_fast.tools.study.tables import cost_table

# Networks, forwards and backwards of a step, counted by hand from each method's equations.
COSTS = {
    "supervised": (1, 1, 1),
    "joint": (1, 2, 2),
    "vat": (1, 4, 3),  # labelled; plain, by ξd and back to d, by r
    "uda_xie": (1, 3, 2),
    "mixmatch": (2, 5, 3),  # two views labelled; labelled images and both views mixed; the average
    "meta_pseudo_labels": (2, 5, 4),  # teacher weak, strong, labelled; student strong, labelled
    "noisy_student": (2, 2, 2),
    "fixmatch": (2, 3, 2),
}


@pytest.mark.parametrize("name", COSTS)
def test_passes_are_those_of_the_equations(name: str) -> None:
    assert count_passes(get_recipe(name), labelled=True) == COSTS[name]


def test_labelled_images_that_are_not_there_cost_nothing() -> None:
    recipe = get_recipe("online_self_training")
    _, with_labels, _ = count_passes(recipe, labelled=True)
    _, without, _ = count_passes(recipe, labelled=False)
    assert without == with_labels - 1


@pytest.mark.slow
def test_memory_is_relative_to_plain_supervision_at_the_same_size() -> None:
    supervised, ddm = (
        step_cost(tiny(get_recipe(name), size=(128, 192)), 5, labelled=True) for name in ("supervised", "ddm")
    )
    assert supervised == Cost(1, 1, 1, 1.0)
    assert supervised.compute == 1
    assert ddm.memory > 1


def test_groups() -> None:
    found = {
        name: [group_of(get_recipe(name), n) for n in (0, 20)]
        for name in ("no_adaptation", "udas", "joint", "ddm", "supervised", "vat", "mic", "minent")
    }
    assert found["no_adaptation"][0] == "source only"
    assert found["udas"] == ["UDA", "SSDA"]
    assert found["minent"][0] == "UDA"
    assert found["joint"][1] == found["ddm"][1] == "SSDA"
    assert found["supervised"][1] == found["vat"][1] == "SSL"
    assert found["mic"][0] == "front line"


@pytest.mark.slow
def test_every_row_of_a_plan_has_its_cost() -> None:
    task = Task("camvid:a", "camvid:b", changes=Changes(small=(32, 48), steps=60))
    whole = plan_study("methods", task, seeds=(0,), num_labels=(20,))
    rows = tuple(row for row in whole.rows if row.recipe in ("supervised", "vat"))
    plan = replace(whole, rows=rows)
    iou = dict.fromkeys(("sky", "road"), Spread.of([31.0]))
    scores = [RowScores(row.title, row.recipe, 20, None, [], iou["sky"], iou, [], []) for row in rows]
    table = StudyTable("methods", "", "a", "b", "none", None, [0], {}, {}, scores)
    assert [row.cost.forwards for row in with_costs(table, plan).rows] == [1, 4]


def test_the_table_has_the_groups_in_order() -> None:
    row = RowScores("VAT, 20 labels", "vat", 20, None, [], Spread.of([31.0]), {}, [], [])
    rows = [
        replace(row, group="SSL", cost=Cost(1, 4, 3, 1.25), step_seconds=[1.4, 1.5, 9.0]),
        replace(
            row,
            name="No adaptation",
            recipe="no_adaptation",
            group="source only",
            cost=Cost(1, 1, 1, 1.0),
            step_seconds=[0.5],
        ),
        replace(row, name="FixMatch", group="SSL", cost=Cost(2, 3, 2, 1.5)),
    ]
    table = StudyTable("methods", "", "a", "b", "none", None, [0], {}, {}, rows)
    assert StudyTable.from_dict(table.to_dict()) == table
    *_, first, second, third = cost_table(table).splitlines()
    assert first == "| No adaptation | source only | 31.0 | 1 | 1 | 1 | 1.0 | 1.0 | 1.0 |"
    assert second == "| VAT, 20 labels | SSL | 31.0 | 1 | 4 | 3 | 3.3 | 3.0 | 1.2 |"
    assert third == "| FixMatch | SSL | 31.0 | 2 | 3 | 2 | 2.3 | – | 1.5 |"
