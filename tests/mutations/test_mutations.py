"""2,340 mutated configurations, lists, images, checkpoints and operator arguments: refused in a sentence, or right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from udas_fast import ops
from udas_fast.data import CAMVID
from udas_fast.data.own_format import folder_spec
from udas_fast.data.translated import read_manifest
from udas_fast.errors import InputError
from udas_fast.inference import TrainedModel
from udas_fast.models import ModelConfig, build_model, load_weights
from udas_fast.recipes import get_recipe, override
from udas_fast.recipes.recipe import recipe_from_dict
from udas_fast.training.run_folder import RunConfig, read_run_file

EACH = 180
GROUPS = [
    ("recipe", "run file", "setting"),
    ("image", "label", "classes", "format", "folder", "manifest"),
    ("model", "weights", "checkpoint"),
    ("operator", "raw operator"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", GROUPS, ids=lambda kinds: kinds[0])
def test_mutated_inputs(kinds: tuple[str, ...], tmp_path: Path) -> None:
    script = Path(__file__).with_name("run.py")
    command = [sys.executable, str(script), str(tmp_path), str(EACH), *kinds]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"a hang at {(tmp_path / 'at').read_text()}")
    assert result.returncode in (0, 1), f"a crash at {(tmp_path / 'at').read_text()}: {result.stderr[-2000:]}"
    for line in result.stdout.splitlines():
        found = json.loads(line)
        assert not found["wrong"], found
        assert sum(found["outcomes"].values()) == EACH
        assert min(found["outcomes"].values()) >= 3, found  # it mutates neither nothing nor everything
    assert len(result.stdout.splitlines()) == len(kinds)


# What mutations have found, once each.


def test_a_setting_that_is_no_yaml() -> None:
    with pytest.raises(InputError, match=r"--set model.width: found '\[', expected a value in YAML"):
        override(get_recipe("udas"), ["model.width=["])


def test_a_run_file_of_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"recipe: \xff")
    with pytest.raises(InputError, match="damaged"):
        read_run_file(tmp_path, RunConfig)
    (tmp_path / "run.yaml").write_text("run: {}")
    with pytest.raises(InputError, match=r"run.yaml: damaged \('recipe'\)"):
        read_run_file(tmp_path, RunConfig)
    document = {"run": {"data": {"num_labels": -1}}, "recipe": get_recipe("udas").to_dict()}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(
        InputError, match=r"run.yaml: run: data.num_labels: input should be greater.*found -1"
    ):
        read_run_file(tmp_path, RunConfig)


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("stages",), [], r"recipe: stages: .* at least 1 item"),
        (("stages", 1, "name"), "adaptation", "stages: found two of the name 'adaptation'"),
        (("stages", 0, "name"), "x" * 3000, "at most 100 characters"),
        (("stages", 1, "objective"), {"kind": "cyclegan"}, "stages: found segmentation and translation"),
        (("stages", 1, "objective", "kind"), {"a": 1}, r"stages\[1\].objective.kind: found .*'a': 1"),
        (("name",), "../../x", "name: string should match pattern"),
        (("stages", 0, "optimizer", "momentum"), float("nan"), "momentum: input should be"),
        (("stages", 0, "optimizer", "weight_decay"), float("inf"), "weight_decay: input should be a finite"),
        (("stages", 0, "optimizer", "horizon"), 0, "horizon: input should be greater than 0"),
        (("stages", 0, "optimizer", "warmup"), -1, "warmup: input should be greater than or equal to 0"),
        (("stages", 1, "objective", "pseudo_labels", "threshold"), 7.0, "threshold"),
        (("stages", 0, "objective", "mixing", "alpha"), 0, "alpha: input should be greater than 0"),
    ],
)
def test_a_recipe_that_could_not_run(keys: tuple, value: object, sentence: str) -> None:
    tree = node = get_recipe("udas").to_dict()
    *above, last = keys
    for key in above:
        node = node[key]
    node[last] = value
    with pytest.raises(InputError, match=sentence):
        recipe_from_dict(tree)


def test_class_names_are_printable_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"road\nc\x00r\n")
    with pytest.raises(InputError, match=r"classes.txt: found 'c\\x00r', expected class names of printable"):
        folder_spec(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfroad\r\ncar\r\n")
    assert folder_spec(tmp_path).classes.names == ("road", "car")


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_an_id_that_is_no_file_name(name: str, tmp_path: Path) -> None:
    manifest = {"source": "camvid:a", "split": "train", "size": None, "classes": ["a", "b"], "generator": "0"}
    (tmp_path / "translated").mkdir()
    (tmp_path / "translated/manifest.json").write_text(json.dumps({**manifest, "files": {name: None}}))
    with pytest.raises(InputError, match="expected the name of an image"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda value: value * torch.nan, "conv1.weight: found numbers that are not finite, expected finite"),
        (lambda value: value.to(torch.int8), "conv1.weight: found torch.int8, expected torch.float32"),
    ],
)
def test_weights_that_are_none(change, sentence: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(backbone="resnet18", width=4), 11)
    state = model.state_dict()
    torch.save(
        {**state, "backbone.conv1.weight": change(state["backbone.conv1.weight"])}, tmp_path / "weights.pth"
    )
    with pytest.raises(InputError, match=sentence):
        load_weights(model, tmp_path / "weights.pth")


def test_a_model_file_that_is_not_finite(tmp_path: Path) -> None:
    config = ModelConfig(backbone="resnet18", width=4)
    model = build_model(config, 11)
    model.backbone.conv1.weight.data.fill_(torch.nan)
    TrainedModel(model, config, CAMVID, (8, 8)).save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="conv1.weight: found numbers that are not finite"):
        TrainedModel.load(tmp_path / "model.safetensors")


LOGITS = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: ops.entropy(LOGITS.to_sparse(), (4, 4)),
            "logits: found torch.sparse_coo, expected a dense tensor",
        ),
        (lambda: ops.entropy(LOGITS, ("a", "b")), "size: found"),
        (
            lambda: ops.entropy(LOGITS, (4, 4), align_corners=0.5),
            "align_corners: found 0.5, expected True or",
        ),
        (
            lambda: ops.confusion_matrix(LOGITS, LOGITS[:, 0].byte(), 3, ignore_index=0.5),
            "ignore_index: found",
        ),
        (
            lambda: ops.pseudo_label([LOGITS], (4, 4), ignore_index="x"),
            "ignore_index: found x, expected 0 to 255",
        ),
        (lambda: ops.pseudo_label([LOGITS], (4, 4), flips=3), "flips: found 3, expected 1 booleans"),
        (lambda: ops.pseudo_label([LOGITS], (4, 4), threshold="x"), "threshold: found x"),
        (
            lambda: ops.pseudo_label([LOGITS], (4, 4), temperature=torch.ones(2, 2)),
            r"found tensor\(.*\), expected",
        ),
        (lambda: ops.distillation_kl(LOGITS, ["x"], (4, 4)), r"teachers\[0\]: found str"),
        (lambda: ops.sample_boxes(2, (4, 4), generator=3), "generator: found int"),
        (lambda: ops.sample_boxes(2, (4, 4), fit=torch.ones(2)), "fit: found"),
    ],
)
def test_an_operators_argument_of_another_kind(call, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()
