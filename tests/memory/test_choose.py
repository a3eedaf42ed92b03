"""A budget chooses the checkpointing, and a run that is out of memory says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.memory import CONTEXT, GIB, MemoryConfig, needed_on_gpu
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.memory import Peak, Row, choose, choose_memory, plan_table
from udas_fast.models import CHECKPOINTING
from udas_fast.objectives import Batches, Losses
from udas_fast.recipes import Recipe, get_recipe, override, small

NEEDS = dict(zip(CHECKPOINTING, (6.0, 3.5, 2.5, 1.5), strict=True))


def recipe(*settings: str) -> Recipe:
    tiny = small(get_recipe("no_adaptation"), size=(32, 48), steps=2, batch_size=2)
    return override(tiny, ["model.width=4", *settings])


@pytest.fixture
def known_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of :data:`NEEDS`, in GB."""
    monkeypatch.setattr(choose, "needed", known)


def known(recipe: Recipe, memory: MemoryConfig, *_: object) -> int:
    share = (memory.micro_batch_size or recipe.input.batch_size) / recipe.input.batch_size
    return int(share * NEEDS[memory.checkpointing] * GIB)


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ([], "none"),
        (["memory.checkpointing=layer3"], "layer3"),
        (["memory.budget=6GB"], "none"),
        (["memory.budget=4GB"], "layer3"),
        (["memory.budget=1.5GB"], "all"),
        (["memory.budget=4GB", "memory.checkpointing=all"], "all"),
    ],
)
@pytest.mark.usefixtures("known_needs")
def test_the_first_policy_that_fits(settings: list[str], policy: str) -> None:
    chosen = choose_memory(recipe(*settings), num_classes=11, labelled=False)
    assert (chosen.checkpointing, chosen.micro_batch_size) == (policy, None)


@pytest.mark.parametrize(
    ("settings", "policy", "size"),
    [
        (["memory.budget=1.5GB"], "all", None),
        (["memory.budget=1.2GB"], "all", 2),  # "none" needs 3 GB for two images and 1.5 GB for one
        (["memory.budget=1.2GB", "memory.checkpointing=layers2-4"], "layers2-4", 1),
        (["memory.budget=1.2GB", "memory.micro_batch_size=1"], "layer3", 1),
        (["memory.micro_batch_size=1"], "none", 1),
    ],
)
@pytest.mark.usefixtures("known_needs")
def test_micro_batches_where_they_change_no_number(
    settings: list[str], policy: str, size: int | None
) -> None:
    frozen = recipe("model.norm=frozen", "input.batch_size=4", *settings)
    chosen = choose_memory(frozen, num_classes=11, labelled=False)
    assert (chosen.checkpointing, chosen.micro_batch_size) == (policy, size)


@pytest.mark.usefixtures("known_needs")
def test_a_budget_leaves_batch_statistics_alone() -> None:
    for settings in (["model.norm=batch"], ["model.norm=frozen", "model.head=fcn"]):
        with pytest.raises(
            InputError, match="expected a larger one, or a smaller .*memory.micro_batch_size or size$"
        ):
            choose_memory(recipe("memory.budget=1GB", *settings), num_classes=11, labelled=False)


@pytest.mark.usefixtures("known_needs")
def test_what_does_not_fit_is_refused_with_figures() -> None:
    with pytest.raises(InputError, match=r"budget 1GB: found 6.0 GB with checkpointing 'none', 3.5 GB with"):
        choose_memory(recipe("memory.budget=1GB"), num_classes=11, labelled=False)
    both = recipe("memory.budget=2GB", "memory.checkpointing=layer3")
    with pytest.raises(InputError, match="found 3.5 GB with checkpointing 'layer3' by prediction, expected"):
        choose_memory(both, num_classes=11, labelled=False)
    with pytest.raises(InputError, match="16-bit precision"):
        choose_memory(recipe("memory.budget=1GB", "precision=fp32"), num_classes=11, labelled=False)


@pytest.mark.parametrize("budget", ["11", "11gb", "11 GiB", "-1GB", "1e400GB", f"{'9' * 400}GB"])
def test_a_budget_that_is_no_size_is_told(budget: str) -> None:
    with pytest.raises(InputError, match=r"memory\.budget: expected a card's size such as 11GB \(found "):
        recipe(f"memory.budget={budget}")


@pytest.mark.slow
def test_a_budget_is_a_prediction_of_the_recipe() -> None:
    tight = recipe(f"memory.budget={(CONTEXT + 2**20) / GIB:.6f}GB")  # 1 MiB beside the allowance
    with pytest.raises(InputError, match=r"found 0\.5 GB with checkpointing 'none', 0\.5 GB with"):
        choose_memory(tight, num_classes=11, labelled=False)
    fits = choose_memory(recipe("memory.budget=1GB"), num_classes=11, labelled=False)
    assert fits.checkpointing == "none"


def trainer(root: Path, run: Path, *settings: str, model: nn.Module | None = None) -> Trainer:
    domains = Domains(source=open_dataset(f"camvid:{root}", "train"))
    return Trainer(recipe(*settings), domains, model, run_dir=run, device="cpu")


def test_checkpointing_changes_no_number_of_a_run(camvid_root: Path, tmp_path: Path) -> None:
    for policy in ("none", "all"):
        trainer(camvid_root, tmp_path / policy, f"memory.checkpointing={policy}").fit()
    one, other = ((tmp_path / policy / "metrics.jsonl").read_text() for policy in ("none", "all"))
    assert one == other
    assert len(one.splitlines()) == 2
    assert json.loads(one.splitlines()[0])["seg"] > 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (
            RuntimeError("alloc_cpu.cpp:127. DefaultCPUAllocator: can't allocate memory: you tried to\nmore"),
            "alloc_cpu.cpp:127. DefaultCPUAllocator: can't allocate memory: you tried to",
        ),
        (MemoryError(), "MemoryError"),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory_ends_with_advice(
    camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def no_memory(self: TrainStep, batches: Batches) -> Losses:
        raise error

    started = trainer(camvid_root, tmp_path / "run", "memory.checkpointing=layers2-4")
    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "__call__", no_memory)
        patched.setattr(choose, "needed", known)
        with pytest.raises(InputError) as caught:
            started.fit()
    assert str(caught.value) == (
        f"source ran out of memory ({told}): by prediction it needs 2.5 GB "
        "with checkpointing 'layers2-4', 1.5 GB with checkpointing 'all'; set one that needs less, or a smaller "
        "input.batch_size, memory.micro_batch_size or size"
    )


def test_a_users_network_is_neither_predicted_nor_checkpointed(camvid_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="memory.budget: found a network of the user's own"):
        trainer(camvid_root, tmp_path / "run", "memory.budget=11GB", model=nn.Conv2d(3, 11, 1))
    with pytest.raises(
        InputError, match="checkpointing 'all': found Conv2d without a backbone of udas_fast, expected 'none'"
    ):
        trainer(camvid_root, tmp_path / "run", "memory.checkpointing=all", model=nn.Conv2d(3, 11, 1))
    with pytest.raises(InputError, match="micro_batch_size: found Conv2d, a network of the user's own"):
        trainer(camvid_root, tmp_path / "run", "memory.micro_batch_size=1", model=nn.Conv2d(3, 11, 1))


def test_the_table_names_the_lightest_policy_of_each_card() -> None:
    def row(batch_size: int, policy: str, gib: float) -> Row:
        return Row(
            batch_size,
            MemoryConfig(checkpointing=policy),
            [Peak("adaptation", {"activations": int(gib * GIB)})],
        )

    rows = [row(1, "none", 4.0), row(1, "all", 1.0), row(2, "none", 7.5), row(2, "all", 2.0)]
    lines = plan_table(rows).splitlines()
    assert not any(line.startswith("budget") for line in lines)
    cards = {line.split(" GB")[0]: line.split()[2:] for line in lines if " GB  " in line}
    # What a GPU needs is 15 % and 0.5 GB more: 5.1, 1.65, 9.1 and 2.8 GB.
    assert cards == {
        "4": ["all", "all"],
        "6": ["none", "all"],
        "8": ["none", "all"],
        "11": ["none", "none"],
        "16": ["none", "none"],
        "24": ["none", "none"],
    }
    assert any(line.split()[:3] == ["1", "none", "adaptation"] for line in lines)
    assert needed_on_gpu(4 * GIB) == int(4 * GIB * 1.15) + CONTEXT


def test_the_table_says_what_a_budget_chooses() -> None:
    memory = MemoryConfig(checkpointing="all", budget="2.5GB")
    rows = [
        Row(n, memory, [Peak("adaptation", {"activations": int(gib * GIB)})]) for n, gib in ((1, 1), (2, 2))
    ]
    (line,) = (line for line in plan_table(rows).splitlines() if line.startswith("budget"))
    assert line.split() == ["budget", "2.5GB", "all", "-"]  # 1.65 and 2.8 GB
