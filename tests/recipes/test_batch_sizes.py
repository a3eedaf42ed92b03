"""Batch sizes by stream: what each stream takes, and which streams have to agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from udas_fast.data.domains import DataConfig, Domains
from udas_fast.errors import InputError
from udas_fast.memory import predict
from udas_fast.recipes import (
    Recipe,
    all_recipes,
    get_recipe,
    has_key,
    load_recipe,
    override,
    recipe_from_dict,
    select_stages,
    small,
)
from udas_fast.recipes.cyclegan import small_cyclegan
from udas_fast.training.requirements import check_batch_sizes, check_data
from udas_fast.training.trainer import open_domains


def _recipe(name: str, *settings: str) -> Recipe:
    if name == "cyclegan":
        recipe = small_cyclegan(get_recipe(name), crop=(64, 64), steps=60)
        return override(recipe, ["input.batch_size=2", *settings])
    recipe = small(get_recipe(name), size=(64, 96), steps=60, batch_size=2)
    if name == "ddm":  # its first two rounds have every kind of stage
        recipe = select_stages(recipe, [stage.name for stage in recipe.stages[:6]])
    return override(recipe, ["model.width=4", *settings])


def _domains(root: Path, recipe: Recipe) -> Domains:
    needs, uses = recipe.streams
    labels = 4 if "labelled" in needs | uses else 0
    return open_domains(DataConfig(f"camvid:{root}", f"camvid:{root}", labels, engine="torch"), recipe)


def test_streams_take_their_own_batch_size(camvid_root: Path) -> None:
    recipe = _recipe("adaptsegnet", "input.stream_batch_size.unlabelled=3")
    loaders = _domains(camvid_root, recipe).loaders(
        recipe.geometries(recipe.stages[0]), recipe.input, seed=0, phase="adaptation"
    )
    assert {name: loader.global_batch for name, loader in loaders.items()} == {"source": 2, "unlabelled": 3}
    assert recipe.batch_sizes == {"source": 2, "unlabelled": 3}


def test_a_process_takes_its_part_of_every_stream() -> None:
    inputs = _recipe("adaptsegnet", "input.batch_size=6", "input.stream_batch_size.unlabelled=2").input
    part = inputs.per_process(2)
    assert (part.batch_size_of("source"), part.batch_size_of("unlabelled")) == (3, 1)
    assert inputs.per_process(1) == inputs


def test_a_recipe_file_keeps_them_and_names_wrong_ones(tmp_path: Path) -> None:
    recipe = _recipe("adaptsegnet", "input.stream_batch_size.source=5")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    data = recipe.to_dict()
    data["input"]["stream_batch_size"] = {"sorce": 5}
    with pytest.raises(InputError, match="key input.stream_batch_size.sorce.*did you mean 'source'"):
        recipe_from_dict(data)
    with pytest.raises(InputError, match="stream_batch_size.source.*greater than or equal to 1"):
        override(recipe, ["input.stream_batch_size.source=0"])


def _combines_one_by_one(recipe: Recipe) -> bool:
    """Whether a step of a stage fails on these batch sizes; on tensors without values."""
    try:
        predict(recipe, num_classes=4)
    except (InputError, ValueError, RuntimeError):
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(all_recipes()))
def test_unequal_sizes_are_refused_exactly_where_a_step_needs_equal_ones(
    name: str, camvid_root: Path
) -> None:
    recipe = _recipe(name)
    variants = [recipe]
    if has_key(recipe, "stages.*.objective.pseudo_share"):  # chance decides which stream is mixed
        variants = [override(recipe, [f"stages.*.objective.pseudo_share={share}"]) for share in (0, 1)]
    for stream in recipe.batch_sizes:
        setting = [f"input.stream_batch_size.{stream}=3"]
        needs_equal = any(_combines_one_by_one(override(variant, setting)) for variant in variants)
        chosen = override(recipe, setting)
        domains = _domains(camvid_root, chosen)
        if needs_equal:
            with pytest.raises(InputError, match=rf"^batch sizes of stage .*{stream} 3.*, expected one size"):
                check_batch_sizes(chosen, domains)
        else:
            check_batch_sizes(chosen, domains)


def test_a_stream_that_is_not_there_has_no_batch_size(camvid_root: Path) -> None:
    recipe = _recipe("udas", "stages.*.objective.translate=none", "input.stream_batch_size.labelled=3")
    with pytest.raises(InputError, match="stage adaptation: found source 2, labelled 3, expected one size"):
        check_data(recipe, _domains(camvid_root, recipe))
    without = replace(_domains(camvid_root, recipe), labelled=None)
    check_data(recipe, without)


@pytest.mark.parametrize("name", ["fixmatch", "unimatch_v2", "online_self_training", "dacs"])
def test_a_single_image_that_a_step_mixes_with_another_is_refused(name: str, camvid_root: Path) -> None:
    one = _recipe(name, "input.stream_batch_size.unlabelled=1", "input.stream_batch_size.source=1")
    one = override(one, ["input.stream_batch_size.labelled=1"])
    domains = _domains(camvid_root, one)
    if name == "dacs":  # it mixes with the source
        check_data(one, domains)
        return
    stage = one.stages[-1].name
    match = f"batch size of stage {stage}: found 1 of unlabelled images, expected 2 or more"
    with pytest.raises(InputError, match=match):
        check_data(one, domains)
    check_data(override(one, ["stages.*.objective.cut_mix=null"]), domains)
