"""Backbones of every family, trained by two processes as by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rounding import ROUNDING, SGD, assert_equal_within_rounding, without_kinks

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.recipes import get_recipe, override, small

NETWORKS = {
    "efficientnet_lite0": [],
    "mit_b0": ["model.width=8"],
    "dinov2_s": ["model.width=24", "model.head=dpt"],
    "dinov3_s": ["model.width=24", "model.head=linear"],
}


@without_kinks()
def train(root: Path, folder: Path) -> None:
    """Two steps of source and labelled target images together with each backbone."""
    images = open_dataset(f"camvid:{root}", "train")
    for name, settings in NETWORKS.items():
        recipe = small(get_recipe("joint"), size=(32, 48), steps=2, batch_size=2)
        recipe = override(
            recipe,
            [
                f"model.backbone={name}",
                "model.output_stride=null",
                "model.width=null",
                "model.norm=sync",
                *settings,
            ],
        )
        recipe = replace(
            recipe, stages=tuple(replace(s, optimizer=replace(s.optimizer, **SGD)) for s in recipe.stages)
        )
        domains = Domains(images, images, engine="torch")
        Trainer(recipe, domains, run_dir=folder / name, device="cpu", log_every=1).fit()


@pytest.mark.slow
def test_two_processes_train_every_backbone_as_one_does(
    camvid_writer: Callable[..., Path], processes: Callable[..., None], tmp_path: Path
) -> None:
    root = camvid_writer(tmp_path / "camvid", train=4, val=2, size=(32, 48))
    train(root, tmp_path / "one")
    processes(2, train, root, tmp_path / "two")
    for name in NETWORKS:
        # These are several times as deep as the networks of the other tests.
        assert_equal_within_rounding(tmp_path / "one" / name, tmp_path / "two" / name, 10 * ROUNDING)
