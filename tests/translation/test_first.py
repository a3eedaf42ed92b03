"""Runs whose source is translated first: one folder, one command, and never a second translation."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.engine.interrupt import Interrupted
from udas_fast.errors import InputError
from udas_fast.objectives import Losses
from udas_fast.objectives.cyclegan import CycleGAN
from udas_fast.recipes import Recipe, get_recipe, override, small, with_translation
from udas_fast.recipes.translation import translation_of

TINY = ("stages.translation.steps=3", *(f"stages.translation.objective.{s}" for s in ("width=4", "blocks=1")))


@pytest.fixture(scope="module")
def roots(camvid_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A source and a target of four images, which no test changes."""
    folder = tmp_path_factory.mktemp("domains")
    source, target = (
        f"camvid:{camvid_writer(folder / name, size=(40, 52))}" for name in ("source", "target")
    )
    return source, target


def _recipe(name: str = "no_adaptation") -> Recipe:
    recipe = small(get_recipe(name), size=(32, 48), steps=6, batch_size=1)
    recipe = with_translation(override(recipe, ["model.width=4"]), "cyclegan", small=True)
    assert recipe.translation is not None
    settings = [f"translation.{setting}" for setting in (*TINY, "input.source.crop=[32, 36]")]
    return override(recipe, [*settings, "translation.input.target.crop=[32, 36]"])


def _start(roots: tuple[str, str], run: Path, recipe: Recipe | None = None) -> Trainer:
    data = DataConfig(*roots, engine="torch")
    return Trainer(recipe or _recipe(), data, run_dir=run, device="cpu", checkpoint_every=2)


@pytest.mark.slow
def test_a_run_trains_on_what_its_cyclegan_made_and_goes_on_to_the_same_numbers(
    roots: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainer = _start(roots, whole)
    trainer.fit()
    made = open_dataset(f"translated:{whole / 'translation'}", "train")
    assert trainer.domains.source.name == made.name == "camvid-translated"
    assert not (made[0].image == open_dataset(roots[0], "train")[0].image).all()

    steps, training_step = [], CycleGAN.training_step

    def interrupted(self: CycleGAN, *arguments: object) -> Losses:
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return training_step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(CycleGAN, "training_step", interrupted)
        with pytest.raises(Interrupted, match=f"stopped in the translation; go on with --resume {cut}"):
            _start(roots, cut).fit()
    Trainer.resume(cut, device="cpu").fit()
    for name in ("metrics.jsonl", "scores.json", "translation/metrics.jsonl"):
        assert (cut / name).read_text() == (whole / name).read_text()
    # A second start of the complete run makes nothing again.
    Trainer.resume(cut, device="cpu").fit()

    # On the same images without another translation the numbers are the same.
    alone = tmp_path / "alone"
    translated = (f"translated:{whole / 'translation'}", roots[1])
    _start(translated, alone, with_translation(_recipe(), "none")).fit()
    assert (alone / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["udas", "udas_tuned", "ddm", "fda"])
def test_a_translated_source_is_never_translated_twice(
    roots: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = tmp_path / "run"
    _start(roots, run).fit()
    recipe = _recipe("udas") if name == "udas" else small(get_recipe(name), size=(32, 48), steps=60)
    ways = translation_of(recipe)
    assert len(ways) == 1
    data = DataConfig(f"translated:{run / 'translation'}", roots[1], num_labels=1 if name == "ddm" else None)
    trainer = Trainer(recipe, data, run_dir=tmp_path / name, device="cpu")
    assert translation_of(trainer.recipe) == ()
    assert f"is translated: {ways[0]} of recipe {name} is left out" in capsys.readouterr().err


def test_objects_cannot_be_translated_first(roots: tuple[str, str], tmp_path: Path) -> None:
    source, target = (open_dataset(root, "train") for root in roots)
    domains = Domains(source=source, unlabelled=target, engine="torch")
    with pytest.raises(
        InputError, match=r"found datasets as objects, expected a DataConfig, or another transl"
    ):
        Trainer(_recipe(), domains, run_dir=tmp_path / "run", device="cpu")


def test_translations_of_recipes() -> None:
    udas = get_recipe("udas")
    assert translation_of(udas) == ("cyclegan",)  # UDAS 3.2
    assert translation_of(small(udas, size=(32, 48))) == ("lab",)
    assert translation_of(with_translation(udas, "fda")) == ("fda",)
    assert translation_of(with_translation(get_recipe("no_adaptation"), "cyclegan")) == ("cyclegan",)  # ST
    for name in ("online_self_training", "dacs", "daformer", "mic"):
        stages = with_translation(get_recipe(name), "lab").stages
        assert [stage.objective.translate for stage in stages] == ["lab"] * len(stages)
    with pytest.raises(
        InputError, match="--translate: found lab, expected nothing: recipe supervised sees no"
    ):
        with_translation(get_recipe("supervised"), "lab")
    with pytest.raises(InputError, match="translation: found recipe uda, expected one that trains CycleGAN"):
        replace(udas, translation=get_recipe("uda"))
