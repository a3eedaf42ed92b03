"""The checks of udas_fast.testing pass a method that keeps the rules and name what one with a mistake does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sample_method import SampleConfig, sample

import udas_fast as uf
from udas_fast.errors import InputError
from udas_fast.testing import (
    assert_no_host_sync,
    assert_processes_agree,
    assert_reads_its_yaml,
    assert_replays,
    assert_resumes,
    assert_rolls_back,
    assert_seeded,
    check_method,
    method,
    tiny,
)

SIZE = (32, 48)
FILE = Path(__file__).with_name("sample_method.py")


def made(mistake: str) -> uf.Recipe:
    return tiny(sample(mistake), 6, SIZE)


def line(text: str) -> str:
    """The number of the line of the sample method that has ``text``."""
    (number,) = (i for i, code in enumerate(FILE.read_text().splitlines(), 1) if text in code)
    return f"sample_method.py:{number}: "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "code", "told"),
    [
        (
            "item",
            "seg.item()",
            "a wait for the device (.item(), float(), bool() or `if`; aten::_local_scalar_dense)",
        ),
        (
            "if",
            "if seg > 3",
            "a wait for the device (.item(), float(), bool() or `if`; aten::_local_scalar_dense)",
        ),
        (
            "mask",
            "source.label != 255",
            "a wait for the device (nonzero(), or a mask as an index; aten::nonzero)",
        ),
        ("cpu", ".cpu()", "a wait for the device (.cpu())"),
        ("constant", "torch.tensor(2.0", "a copy from the host (torch.tensor on the device)"),
    ],
)
def test_a_wait_is_named_with_its_line(mistake: str, code: str, told: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"{line(code)}found {told}, expected none in a step")):
        assert_no_host_sync(made(mistake))


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (
            "noise in the step",
            f"{line('seg * torch.rand')}found random numbers in training_step (torch.rand)",
        ),
        ("torch's own", "found torch's own generator (torch.randint), expected ctx.generator, in"),
        ("Python's own", "stage mixed: found numbers drawn from random, expected ctx.generator"),
    ],
)
def test_other_random_numbers_are_named(mistake: str, told: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(told)):
        assert_seeded(made(mistake))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "mistake", "told"),
    [
        (
            assert_replays,
            "count on the host",
            "mixed, replayed: .* may depend on the shapes and plain values",
        ),
        (assert_replays, "item", "mixed: a step cannot be recorded: aten::_local_scalar_dense waits"),
        (assert_replays, "outline", "mixed: no step was replayed, as no 4 successive batches"),
        (assert_resumes, "count on the host", "mixed, resumed: .* must be a buffer or a submodule"),
        (assert_resumes, "hidden", "mixed, resumed: .* must be a buffer or a submodule"),
        (assert_rolls_back, "count on the host", "mixed, after a skipped step: .* must be a buffer"),
        (assert_rolls_back, "hidden, in the step", "mixed, after a skipped step: .* must be a buffer"),
    ],
)
def test_state_of_the_host_is_found(check: Callable[[uf.Recipe], None], mistake: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check(made(mistake))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (
            "own pixels",
            "mixed: parameters of the network: 2 processes change .* by .*% of its change .means over",
        ),
        ("not ctx.draw", "mixed: parameters of the network: 2 processes change .* ctx.draw"),
        (
            "not averaged",
            "mixed: state of process 1.objective.buffers.light: found .*, as process 0 has them",
        ),
    ],
)
def test_processes_that_go_other_ways_are_found(mistake: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert_processes_agree(made(mistake))


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = made("")
    monkeypatch.setattr("udas_fast.recipes.methods.origins", lambda recipe: ["/nowhere/method.py"])
    with pytest.raises(AssertionError, match="sample: one of 2 processes failed: .*method.py: no such file"):
        assert_processes_agree(recipe)


def test_a_configuration_that_yaml_changes_is_found() -> None:
    stage = uf.Stage("mixed", SampleConfig(values=(1, 2)), steps=6)
    with pytest.raises(AssertionError, match="the YAML of sample gives another recipe"):
        assert_reads_its_yaml(replace(made(""), stages=(stage,)))


@pytest.mark.slow
def test_a_method_that_keeps_the_rules_passes() -> None:
    check_method(sample(), size=SIZE)


@pytest.mark.slow
def test_all_failures_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "CHECKS", method.CHECKS[:-1])  # processes take their time to start
    with pytest.raises(AssertionError) as failed:
        check_method(sample("count on the host"), size=SIZE)
    first, *others = str(failed.value).splitlines()
    assert first == "sample: 3 of 6 checks failed"
    assert [told.split(":")[0] for told in others] == [
        "- assert_replays",
        "- assert_resumes",
        "- assert_rolls_back",
    ]


def test_a_translation_is_refused() -> None:
    with pytest.raises(InputError, match="recipe cyclegan: found one that trains translation"):
        check_method("cyclegan")


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps of stage mixed: found 4, expected at least 5"):
        assert_replays(tiny(sample(), 4, SIZE))
