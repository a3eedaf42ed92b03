"""Steps whose loss or gradient is not finite, left out and counted where that is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from udas_fast import Trainer
from udas_fast.data import UserLoader
from udas_fast.data.domains import Domains
from udas_fast.engine.checkpoint import read_state
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe, small

SIZE = (32, 48)


class Sick(nn.Module):
    """Returns infinite logits, or logits with an infinite gradient, in some of its training forwards."""

    def __init__(self, sick: tuple[int, ...], *, gradient: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm = nn.Conv2d(3, 2, 3, 2, 1), nn.BatchNorm2d(2)
        self.sick, self.gradient, self.calls = sick, gradient, -1

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        self.calls += self.training
        if self.training and self.calls in self.sick:
            if self.gradient:
                features.register_hook(lambda grad: grad * torch.inf)
            else:
                features = features * torch.inf
        return self.norm(features)


def _trainer(run: Path, model: nn.Module, steps: int, **options: object) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=generator)
    batch = {"image": image, "label": torch.randint(0, 2, (2, *SIZE), generator=generator), "id": ["a", "b"]}
    plan = small(get_recipe("no_adaptation"), size=SIZE, steps=steps, batch_size=2)
    data = Domains(source=UserLoader([batch], ("a", "b")))
    return Trainer(plan, data, model, run_dir=run, device="cpu", checkpoint_every=1, **options)


@pytest.mark.parametrize(
    ("gradient", "what"), [(False, "loss 'seg' is nan"), (True, "a gradient is not finite")]
)
def test_a_bad_step_leaves_no_trace(gradient: bool, what: str, tmp_path: Path, capsys) -> None:
    _trainer(tmp_path, Sick((2,), gradient=gradient), 3, max_bad_steps=1).fit()
    assert f"skipped: {what} at step 2 (source), on source a, b" in capsys.readouterr().err
    assert json.loads((tmp_path / "fault.json").read_text())["step"] == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1]
    before, after = (read_state(path) for path in sorted((tmp_path / "checkpoints").iterdir()))
    assert (before["bad_steps"], after["bad_steps"]) == (0, 1)
    assert (before["step"]["done"], after["step"]["done"]) == (2, 3)
    for name, value in before["step"]["model"].items():  # the batch norm's statistics too
        assert torch.equal(value, after["step"]["model"][name]), name


def test_one_more_than_allowed_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"loss 'seg' is nan at step 3 .* skip such steps with max_bad_steps"
    ):
        _trainer(tmp_path, Sick((1, 3)), 6, max_bad_steps=1).fit()
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert read_state(newest)["step"]["done"] == 3


def test_a_run_without_bad_steps_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for name, limit in (("without", 0), ("with", 3)):
        _trainer(tmp_path / name, Sick(()), 3, max_bad_steps=limit).fit()
    assert (tmp_path / "without/metrics.jsonl").read_text() == (tmp_path / "with/metrics.jsonl").read_text()
