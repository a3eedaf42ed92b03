"""Pictures of a study: the images that Domain CutMix made, and the confidence of each view in a run's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udas_fast import Trainer
from udas_fast.evaluation import figure, pseudo_label_figure
from udas_fast.recipes import Changes
from udas_fast.tools.study import StudyPlan, Task, plan_study
from udas_fast.tools.study.figures import mixed_images, mixed_images_figure


def _plan(root: Path, labels: tuple[int, ...] = (2,), settings: tuple[str, ...] = ()) -> StudyPlan:
    task = Task(
        f"camvid:{root}",
        f"camvid:{root}",
        changes=Changes(small=(32, 48), steps=6),
        settings=("model.width=4", "input.batch_size=2", *settings),
        engine="torch",
        device="cpu",
    )
    return plan_study("parts", task, seeds=(0,), num_labels=labels)


@pytest.mark.slow
def test_a_trained_run_gives_pictures_of_mixed_images_and_of_every_view(
    camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(camvid_root)
    run = plan.runs[0]
    seen: list[Sequence[np.ndarray]] = []

    def draw(image: np.ndarray, views: Sequence[np.ndarray], confidence: np.ndarray, *rest: object) -> None:
        seen.append((*views, confidence))
        pseudo_label_figure(image, views, confidence, *rest)

    monkeypatch.setattr(figure, "DPI", 40)
    monkeypatch.setattr("udas_fast.evaluation.pseudo_label_figure", draw)
    trainer = Trainer(run.recipe(), run.data, run_dir=tmp_path / run.folder, seed=0, device="cpu")
    trainer.fit()
    for *views, confidence in seen:
        assert len(views) == 3  # K of UDAS 4.2.5
        assert confidence.shape == views[0].shape
        # The maximum confidence map.
        np.testing.assert_allclose(np.max(views, 0), confidence, atol=1e-5)
        assert any(not np.array_equal(views[0], view) for view in views[1:])
    assert len(seen) == 2  # rounds
    mixed_images_figure(plan, tmp_path, tmp_path / "mixed.png")
    with Image.open(tmp_path / "mixed.png") as picture:
        assert picture.width > picture.height


def test_mixed_images_are_those_of_the_runs_first_steps(camvid_root: Path) -> None:
    plain = mixed_images(_plan(camvid_root, settings=("stages.*.objective.mixing.augment=none",)).runs[0])
    full = mixed_images(_plan(camvid_root).runs[0])
    for made in (plain, full):
        assert made.image.dtype == torch.uint8
        assert made.image.shape == (3, 3, 32, 48)
        assert made.label.shape == (3, 32, 48)
    assert plain.ids == full.ids
    assert all(" + " in name for name in plain.ids)
    assert torch.equal(mixed_images(_plan(camvid_root).runs[0]).image, full.image)
    assert not torch.equal(plain.image, full.image)


def test_nothing_is_drawn_without_mixing_or_labels(camvid_root: Path, tmp_path: Path) -> None:
    plan = _plan(camvid_root, (0,))
    assert [mixed_images(run) for run in plan.runs[:2]] == [None, None]
    labelled = _plan(camvid_root).runs
    (without,) = (run for run in labelled if "without Domain CutMix" in run.row.title)
    assert mixed_images(without) is None
    mixed_images_figure(plan, tmp_path, tmp_path / "mixed.png")
    assert not (tmp_path / "mixed.png").exists()
