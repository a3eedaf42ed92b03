"""Scores of a run while it trains: those of the network as it is, the same after a kill, and the best one kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from udas_fast import Callback, TrainedModel, Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.checkpoint import read_state
from udas_fast.errors import InputError
from udas_fast.evaluation import Scores, evaluate_dataset
from udas_fast.inference import BEST_FILE
from udas_fast.models import build_model
from udas_fast.recipes import get_recipe, override, small

STEPS = 8


class Collect(Callback):
    """Keeps scores by step; the process is lost while the scores of step ``lost`` are taken."""

    def __init__(self, lost: int | None = None) -> None:
        self.scores: dict[int, Scores] = {}
        self.lost = lost

    def on_scores(self, phase: str, step: int, scores: Scores) -> None:
        if step == self.lost:
            raise KeyboardInterrupt
        self.scores[step] = scores


def _domains(root: Path, *, scored: bool = True) -> Domains:
    train, val = (open_dataset(f"camvid:{root}", split) for split in ("train", "val"))
    return Domains(
        source=train, labelled=train, unlabelled=train, val=val if scored else None, engine="torch"
    )


def _trainer(
    root: Path, run: Path, *callbacks: Callback, recipe: str = "no_adaptation", **options: object
) -> Trainer:
    made = override(small(get_recipe(recipe), size=(32, 48), steps=STEPS, batch_size=2), ["model.width=4"])
    if "ema" in options:
        made = override(made, [f"ema={options.pop('ema')}"])
    return Trainer(
        made,
        _domains(root),
        run_dir=run,
        device="cpu",
        callbacks=callbacks,
        checkpoint_every=2,
        log_every=3,
        **options,
    )


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scored(camvid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collect]:
    run, collect = tmp_path_factory.mktemp("runs") / "scored", Collect()
    _trainer(camvid_root, run, collect, evaluate_every=3, keep_best=True).fit()
    return run, collect


def test_nothing_else_changes(scored: tuple[Path, Collect], camvid_root: Path, tmp_path: Path) -> None:
    run, _ = scored
    _trainer(camvid_root, tmp_path / "plain").fit()
    assert not (tmp_path / "plain/scores.jsonl").exists()
    for name in ("metrics.jsonl", "scores.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (run / name).read_bytes()
    timed = [json.loads(line)["step"] for line in (run / "timing.jsonl").read_text().splitlines()]
    assert timed == list(range(STEPS))


def test_every_n_steps_and_after_the_round(scored: tuple[Path, Collect]) -> None:
    run, collect = scored
    lines = _lines(run)
    assert [(line["step"], line["phase"]) for line in lines] == [(n, "source") for n in (3, 6, STEPS)]
    assert list(collect.scores) == [3, 6, STEPS]
    for line in lines:
        scores = collect.scores[line["step"]]
        assert line["miou"] == scores.miou
        assert line["iou"] == scores.to_dict()["iou"]
    last = json.loads((run / "scores.json").read_text())["phases"]["source"]
    assert last["confusion_matrix"] == collect.scores[STEPS].matrix.tolist()


def test_the_events_have_the_scores(scored: tuple[Path, Collect]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, collect = scored
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("score/miou")}
    assert found == pytest.approx({step: scores.miou for step, scores in collect.scores.items()})
    assert "score/iou/sky" in events.Tags()["scalars"]


@pytest.mark.parametrize("ema", [None, 0.5])
def test_they_are_those_of_the_network_that_would_be_the_result(
    camvid_root: Path, tmp_path: Path, ema: float | None
) -> None:
    collect = Collect()
    trainer = _trainer(camvid_root, tmp_path / "run", collect, evaluate_every=2, ema=ema or "null")
    trainer.fit()
    state = read_state(tmp_path / "run/checkpoints/step-00000006.pt")["step"]
    network = build_model(trainer.recipe.model, 11)
    weights = state["model"]
    if ema is not None:
        weights = {k.removeprefix("network."): v for k, v in state["average"].items() if k != "count"}
    network.load_state_dict(weights)
    expected = evaluate_dataset(network, _domains(camvid_root).val, "val", (32, 48))
    assert torch.equal(collect.scores[6].matrix, expected.matrix)


def test_a_teacher_that_is_the_result_is_scored(camvid_root: Path, tmp_path: Path) -> None:
    collect = Collect()
    name = "fixmatch"
    recipe = override(
        small(get_recipe(name), size=(32, 48), steps=4, batch_size=2),
        ["model.width=4", "stages.*.objective.result=teacher"],
    )
    trainer = Trainer(
        recipe,
        _domains(camvid_root),
        run_dir=tmp_path / "run",
        device="cpu",
        callbacks=[collect],
        checkpoint_every=2,
        evaluate_every=2,
    )
    trainer.fit()
    state = read_state(tmp_path / "run/checkpoints/step-00000002.pt")["step"]["objective"]
    prefix = "teacher.network."
    network = build_model(trainer.recipe.model, 11)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    expected = evaluate_dataset(network, _domains(camvid_root).val, "val", (32, 48))
    assert torch.equal(collect.scores[2].matrix, expected.matrix)


def test_the_best_network_is_kept_and_says_so(scored: tuple[Path, Collect], camvid_root: Path) -> None:
    run, collect = scored
    step = max(collect.scores, key=lambda number: collect.scores[number].miou)
    trained = TrainedModel.load(run / BEST_FILE)
    assert trained.selected == f"best on val at step {step}"
    assert f"selected: best on val at step {step}" in str(trained.protocol)
    again = evaluate_dataset(trained.model, _domains(camvid_root).val, "val", trained.size)
    assert torch.equal(again.matrix, collect.scores[step].matrix)
    assert [line["step"] for line in _lines(run) if line["best"]][-1] == step
    assert TrainedModel.load(run).selected is None


@pytest.mark.slow
@pytest.mark.parametrize("lost", [3, 6, STEPS])
def test_lost_while_it_is_scored(
    scored: tuple[Path, Collect], camvid_root: Path, tmp_path: Path, lost: int
) -> None:
    whole, _ = scored
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        _trainer(camvid_root, run, Collect(lost), evaluate_every=3, keep_best=True).fit()
    with (run / "scores.jsonl").open("a") as file:
        file.write('{"step": 7, "ph')  # as a kill leaves it
    Trainer.resume(run, data=_domains(camvid_root), device="cpu").fit()
    for name in ("scores.jsonl", "metrics.jsonl", "model.safetensors", BEST_FILE):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_best_network_of_steps_that_are_repeated_does_not_stand(
    scored: tuple[Path, Collect], camvid_root: Path, tmp_path: Path
) -> None:
    whole, collect = scored
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        _trainer(camvid_root, run, Collect(6), evaluate_every=3, keep_best=True).fit()
    lines = _lines(run)
    lines[-1] |= {"step": 6, "best": True, "miou": 1.0}  # of steps that went otherwise then
    (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Trainer.resume(run, data=_domains(camvid_root), device="cpu").fit()
    after = {step: scores.miou for step, scores in collect.scores.items() if step >= 6}
    best = max(after, key=lambda step: after[step])
    assert TrainedModel.load(run / BEST_FILE).selected == f"best on val at step {best}"
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_best_is_none_of_another_stages_teachers(camvid_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = override(small(get_recipe("ddm"), size=(32, 48), steps=12, batch_size=2), ["model.width=4"])
    Trainer(recipe, _domains(camvid_root), run_dir=run, device="cpu", evaluate_every=2, keep_best=True).fit()
    last = recipe.stages[-1].network
    phases = {phase.name for phase in recipe.phases() if phase.stage.network == last}
    assert {line["phase"] for line in _lines(run) if line["best"]} <= phases
    assert (run / BEST_FILE).is_file()


def test_a_run_that_starts_from_a_selected_model_says_so(
    scored: tuple[Path, Collect], camvid_root: Path, tmp_path: Path
) -> None:
    best = scored[0] / BEST_FILE
    trainer = _trainer(camvid_root, tmp_path / "next", start=str(best))
    assert f"starts from {best}, selected: best on val at step" in trainer.describe()


def test_what_cannot_be_asked_for(camvid_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keep_best: found no evaluate_every, expected the steps"):
        _trainer(camvid_root, tmp_path / "run", keep_best=True)
    recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=2, batch_size=2)
    domains = _domains(camvid_root, scored=False)
    with pytest.raises(InputError, match="evaluate_every: found no val split with labels"):
        Trainer(recipe, domains, run_dir=tmp_path / "run", device="cpu", evaluate_every=1)
    assert not (tmp_path / "run").exists()
