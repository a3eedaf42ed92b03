"""A user's own loaders over two processes: an image once in an epoch, the run of one process, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounding import SGD, assert_equal_within_rounding
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Subset

from udas_fast import Trainer, distributed
from udas_fast.data import UserLoader
from udas_fast.data.domains import Domains
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, small
from udas_fast.training.requirements import check_data

CLASSES, IMAGES, BATCH = ("road", "car", "sky"), 8, 4
SIZE = (24, 32)


class Images(Dataset):
    """Each in a colour of its own."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = torch.arange(SIZE[1]).expand(SIZE) // (index + 4) % 3
        return (20 * index + 10 * label).to(torch.uint8).expand(3, *SIZE), label


def sharded(shuffle: bool = True) -> DistributedSampler:
    return DistributedSampler(Images(), distributed.get_world_size(), distributed.get_rank(), shuffle=shuffle)


def loader(name: str = "mine", **options: object) -> UserLoader:
    return UserLoader(DataLoader(Images(), BATCH // distributed.get_world_size(), **options), CLASSES, name)


def recipe() -> Recipe:
    plan = small(get_recipe("no_adaptation"), size=SIZE, steps=3, batch_size=BATCH)
    stages = tuple(replace(stage, optimizer=replace(stage.optimizer, **SGD)) for stage in plan.stages)
    return replace(plan, stages=stages)


def train(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, len(CLASSES), 1))
    domains = Domains(source=loader(sampler=sharded()), val=loader("val"))
    trainer = Trainer(recipe(), domains, model, run_dir=folder / "run", device="cpu", log_every=1)
    assert trainer.fit()["source"].protocol.images == IMAGES


def epochs(batches: UserLoader, count: int) -> list[list[int]]:
    """Which images all processes get in each of the first ``count`` epochs, by rank and place."""
    inputs = recipe().input
    stream = Domains(source=batches).loaders({"source": inputs.source}, inputs, seed=0, phase="p")
    drawn = stream["source"].batches()
    steps = [next(drawn).image[:, 0, 0, 0].div(20, rounding_mode="floor").tolist() for _ in range(2 * count)]
    parts = distributed.all_gather_object(steps)
    return [[i for part in parts for step in part[2 * e : 2 * e + 2] for i in step] for e in range(count)]


def shards() -> None:
    by_batch = BatchSampler(sharded(), BATCH // distributed.get_world_size(), drop_last=False)
    for mine in (
        loader(sampler=sharded()),
        UserLoader(DataLoader(Images(), batch_sampler=by_batch), CLASSES),
    ):
        first, second = epochs(mine, 2)
        assert sorted(first) == sorted(second) == list(range(IMAGES))
        assert first != second  # set_epoch was called


def refusals() -> None:
    def require(**domains: UserLoader) -> None:
        check_data(recipe(), Domains(**domains))

    part = Subset(Images(), range(distributed.get_rank(), IMAGES, distributed.get_world_size()))
    own = UserLoader(DataLoader(part, 2, shuffle=True), CLASSES)
    generated = UserLoader(
        [(torch.full((1, 3, *SIZE), distributed.get_rank()).byte(), torch.zeros(1, *SIZE))], CLASSES
    )
    for good in (own, generated):
        require(source=good, val=loader())
    unsharded = "batches of mine: found the same in several .* a different part in each.*DistributedSampler"
    for shuffle in (False, True):
        with pytest.raises(InputError, match=unsharded):
            require(source=loader(shuffle=shuffle))
    for options in ({"shuffle": True}, {"sampler": sharded(shuffle=False)}):
        with pytest.raises(
            InputError, match="batches of val: found others in each process, expected the same in all"
        ):
            require(source=own, val=loader("val", **options))
    with pytest.raises(InputError, match="batches of loader: found none, expected at least one"):
        require(source=UserLoader([], CLASSES))


def use_loaders(folder: Path) -> None:
    shards()
    refusals()
    train(folder)


@pytest.mark.slow
def test_two_processes_share_a_users_loader_as_one_has_it(
    tmp_path: Path, processes: Callable[..., None]
) -> None:
    processes(2, use_loaders, tmp_path / "two")
    train(tmp_path / "one")
    assert_equal_within_rounding(tmp_path / "one/run", tmp_path / "two/run")
