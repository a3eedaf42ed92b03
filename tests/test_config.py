"""Configuration classes: each wrong value is one sentence that names the key, never pydantic's traceback."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, field, replace
from typing import Annotated, Literal

import pytest
from pydantic import Field

from udas_fast.config import config_dataclass, from_dict, load_yaml, to_dict
from udas_fast.errors import InputError, bad
from udas_fast.recipes import get_recipe, override


@config_dataclass
class Inner:
    weight: Annotated[float, Field(ge=0)] = 0.5
    size: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.size[0] > self.size[1]:
            raise bad("size", list(self.size), "the smaller side first")


@config_dataclass
class Outer:
    inner: Inner | None = None
    choice: float | Literal["auto"] = "auto"
    many: tuple[Inner, ...] = field(default=())


def test_plain_data_and_back() -> None:
    made = Outer(Inner(2.0), 0.5, (Inner(), Inner(size=(3, 4))))
    assert from_dict(Outer, to_dict(made), "file") == made
    assert replace(made, choice="auto").inner == made.inner
    with pytest.raises(FrozenInstanceError):
        made.choice = 1.0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"innner": None}, "file: key innner: found 'innner', expected one of .* .did you mean 'inner'"),
        ({"inner": {"wight": 1}}, "file: key inner.wight: found 'wight'.* .did you mean 'weight'"),
        ({"inner": {"weight": -1}}, "file: inner.weight: input should be greater than or equal to 0"),
        ({"inner": {"weight": float("nan")}}, "file: inner.weight: input should be a finite number"),
        ({"inner": {"size": 3}}, "file: inner.size: found 3, expected a list such as"),
        ({"inner": {"size": [4, 3]}}, r"file: inner: size: found \[4, 3\], expected the smaller side first"),
        ({"many": [{}, {"weight": "x"}]}, r"file: many\[1\].weight: input should be a valid number"),
        ({"choice": "manual"}, "file: choice: .*found 'manual'"),
        (3, "file: the whole: .*found 3"),
    ],
)
def test_wrong_data_is_named(data: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        from_dict(Outer, data, "file")
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_wrong_arguments_in_python_are_named() -> None:
    with pytest.raises(InputError, match="Inner: weight: input should be a valid number"):
        Inner("x")  # by position
    with pytest.raises(InputError, match="Inner: key wight: found 'wight'.*did you mean 'weight'"):
        Inner(wight=1)
    with pytest.raises(InputError, match="Inner: "):
        Inner(1, (1, 2), 3)
    with pytest.raises(InputError, match="Inner: weight"):
        replace(Inner(), weight=-1)
    with pytest.raises(InputError, match=r"Inner: size: found \[2, 1\]"):
        Inner(size=(2, 1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 3_000, "nested too deeply"),
        ("&a [*a]", "aliases that stand for more than"),
        (
            "\n".join(["- &a0 [x]", *(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))]),
            "aliases",
        ),
        ("a: [", "while parsing"),
    ],
    ids=["deep", "itself", "nested aliases", "no YAML"],
)
def test_yaml_is_read_within_bounds(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_yaml(text)
    with pytest.raises(InputError, match="--set model.width: found"):
        override(get_recipe("udas"), [f"model.width={text}"])


def test_an_alias_is_yaml_too() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "setting",
    [
        "stages.self_training.rounds=10000000000",
        "stages.self_training.steps=100000000000000000000",
        "stages.adaptation.objective.adversary.width=10000000",
        "input.batch_size=1000000000",
        "input.source.size=[1000000, 1000000]",
    ],
)
def test_an_absurd_number_is_a_slip(setting: str) -> None:
    key = setting.partition("=")[0].rpartition(".")[2]
    with pytest.raises(InputError, match=rf"{key}.*less than or equal to"):
        override(get_recipe("udas"), [setting])
