"""Mutated recipes and run files: refused in a sentence, or read back as they are and fit to begin with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from mutate import mutate_bytes, mutate_tree
from torch import nn

from udas_fast.data import Geometry
from udas_fast.data.domains import DataConfig
from udas_fast.engine.optim import build_optimizers, lr_factor
from udas_fast.models import build_model
from udas_fast.recipes import all_recipes, get_recipe, load_recipe, override, small
from udas_fast.recipes.recipe import recipe_from_dict
from udas_fast.training.run_folder import RunConfig, read_run_file, run_document


def _tiny(name: str) -> dict:
    """A recipe with a network that is made in no time."""
    recipe = override(get_recipe(name), ["model.backbone=resnet18", "model.width=4"])
    return recipe.to_dict()


def _mutated_yaml(rng: random.Random, tree: dict) -> bytes:
    if rng.random() < 0.15:
        return mutate_bytes(rng, yaml.safe_dump(tree).encode())
    return yaml.dump(mutate_tree(rng, tree), allow_unicode=True).encode()


def _numbers(node: object) -> list[float]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [node] if isinstance(node, float) else [n for child in children for n in _numbers(child)]


def recipe_case(folder: Path) -> Callable[[int], None]:
    """A recipe file: what is accepted round-trips, and its parts can be built."""
    trees = [_tiny(name) for name in sorted(all_recipes()) if name != "cyclegan"]

    def run(seed: int) -> None:
        rng = random.Random(seed)
        path = folder / "recipe.yaml"
        path.write_bytes(_mutated_yaml(rng, rng.choice(trees)))
        recipe = load_recipe(path)
        assert recipe_from_dict(recipe.to_dict()) == recipe
        assert recipe.stages
        assert all(math.isfinite(value) for value in _numbers(recipe.to_dict()))
        if (recipe.model.width or 64) <= 64 and recipe.model.backbone == "resnet18":
            build_model(recipe.model, 4)
        assert isinstance(recipe.input.source, Geometry)
        for stage in recipe.stages:
            adversary = getattr(stage.objective, "adversary", None)
            if adversary is None or adversary.width <= 256:
                stage.objective.build(4)
            config = stage.optimizer
            for progress in (0.0, 0.5, 0.999):
                rate = lr_factor(progress, config) * config.lr
                assert math.isfinite(rate), config
                assert rate >= 0, config
            if config.name != "apex_sgd":
                build_optimizers(nn.Conv2d(1, 1, 1), [nn.Parameter(torch.zeros(1))], config)

    return run


def run_file_case(folder: Path) -> Callable[[int], None]:
    """``run.yaml``: what is accepted is what the file says."""
    recipe = small(get_recipe("udas"), size=(32, 48), steps=6)
    tree = run_document(recipe, RunConfig(DataConfig("camvid:a", "camvid:b", 3)))
    tree = yaml.safe_load(yaml.safe_dump(tree))

    def run(seed: int) -> None:
        rng = random.Random(seed)
        (folder / "run.yaml").write_bytes(_mutated_yaml(rng, tree))
        found, config = read_run_file(folder, RunConfig)
        assert recipe_from_dict(found.to_dict()) == found
        assert config.seed >= 0
        assert config.log_every >= 1

    return run


def setting_case(folder: Path) -> Callable[[int], None]:
    """``--set KEY=VALUE``: a value that is accepted is in the recipe."""
    recipe = recipe_from_dict(_tiny("udas"))
    keys = [
        *("model.width", "precision", "ema", "input.batch_size", "input.source.size", "memory.budget"),
        *("stages.adaptation.steps", "stages.adaptation.optimizer.lr", "stages.self_training.rounds"),
        *(
            "stages.self_training.objective.pseudo_labels.threshold",
            "stages.adaptation.objective.mixing.alpha",
        ),
    ]
    values = [
        *(
            "1",
            "-1",
            "0",
            "nan",
            ".inf",
            "1e3",
            "'4'",
            "[1, 2]",
            "{a: 1}",
            "null",
            "true",
            "64",
            "11GB",
            "bf16",
        ),
        *("!!python/name:os.system", "&a [*a]", "\t", "[", "*x", "0x10", "1_0", "2026-01-01", "x: y: z", "'"),
    ]

    def run(seed: int) -> None:
        rng = random.Random(seed)
        key, value = rng.choice(keys), rng.choice(values)
        if rng.random() < 0.2:
            key = mutate_bytes(rng, key.encode()).decode("latin-1")
        found = override(recipe, [f"{key}={value}"])
        assert recipe_from_dict(found.to_dict()) == found

    return run
