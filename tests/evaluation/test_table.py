"""Tables of scores: every number in its place."""

import pytest
import torch

from udas_fast.data import CITYSCAPES
from udas_fast.errors import InputError
from udas_fast.evaluation import Scores, scores_table


@pytest.fixture
def rows(classes, protocol) -> dict[str, Scores]:
    good = torch.diag(torch.tensor([10, 20, 30, 40, 0]))
    poor = good.clone()
    poor[0, 1] = 10
    return {"good": Scores(good, classes.names, protocol()), "poor": Scores(poor, classes.names, protocol())}


def cells(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    table = [line.split("|") for line in lines]
    return {line[0].strip(): [c.strip() for c in line[1:]] for line in table}


def test_table_holds_each_class_the_mean_and_the_accuracy_in_percent(rows, classes):
    table = cells(scores_table(rows, classes))
    assert table["sky"] == ["100.0", "50.0"]
    assert table["road"] == ["100.0", "66.7"]
    assert table["car"] == ["100.0", "100.0"]
    assert table["sign"] == ["–", "–"]
    assert table["mIoU"] == ["100.0", "79.2"]
    assert table["pixel accuracy"] == ["100.0", "90.9"]


def test_markdown_has_header_rule_and_equal_columns(rows, classes):
    lines = scores_table(rows, classes).splitlines()
    assert lines[0].split("|")[1].strip() == "IoU, %"
    assert [c.strip() for c in lines[0].split("|")[2:-1]] == ["good", "poor"]
    assert set(lines[1]) == set("|-: ")
    assert len({len(line) for line in lines if line.startswith("|")}) == 1


def test_every_mean_says_over_which_classes_it_is(rows, classes):
    note = "mIoU: mean over 4 of 5 classes; absent: sign"
    assert note in scores_table(rows, classes).splitlines()
    whole = rows["good"].matrix.clone()
    whole[4, 4] = 1
    rows["whole"] = Scores(whole, classes.names, rows["good"].protocol)
    lines = scores_table(rows, classes).splitlines()
    assert f"mIoU of good: {note.removeprefix('mIoU: ')}" in lines
    assert "mIoU of whole: mean over all 5 classes" in lines


def test_the_protocol_is_written_once_or_for_each_that_differs(rows, classes, protocol):
    assert scores_table(rows, classes).splitlines()[-1] == f"Protocol: {protocol()}"
    rows["poor"] = Scores(rows["poor"].matrix, classes.names, protocol(align_corners=True))
    last = scores_table(rows, classes).splitlines()[-2:]
    assert last == [
        f"Protocol of good: {protocol()}",
        f"Protocol of poor: {protocol(align_corners=True)}",
    ]


def test_cityscapes_classes_show_all_three_means(protocol):
    scores = Scores(torch.eye(19).long(), CITYSCAPES.names, protocol(num_classes=19))
    table = cells(scores_table({"all": scores}, CITYSCAPES))
    assert table["mIoU"] == table["mIoU synthia16"] == table["mIoU synthia13"] == ["100.0"]


def test_no_scores_and_scores_of_other_classes_are_refused(rows, classes):
    with pytest.raises(InputError, match="scores table: found no scores"):
        scores_table({}, classes)
    with pytest.raises(
        InputError, match=r"scores of good: found classes sky, road.*expected those of cityscapes"
    ):
        scores_table(rows, CITYSCAPES)
