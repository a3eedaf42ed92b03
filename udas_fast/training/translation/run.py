"""A run of `udas-fast translate`: CycleGAN trained by the one loop, then every source image translated."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from udas_fast import distributed
from udas_fast.config import config_dataclass
from udas_fast.data import Geometry, SegmentationDataset, Unlabelled, open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.data.translated import Manifest
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.errors import bad
from udas_fast.inference import TrainedModel
from udas_fast.models import SHORTEST_PATCH, CycleGenerators, Generator, to_signed, to_uint8
from udas_fast.objectives.cyclegan import CycleGAN, CycleGANConfig
from udas_fast.recipes import Recipe
from udas_fast.seeding import seed_step
from udas_fast.training.environment import write_environment
from udas_fast.training.fit import Run, attempting, start_step, train_phase
from udas_fast.training.requirements import check_batch_sizes, show_notices
from udas_fast.training.run_folder import (
    begin_run,
    locked,
    opening_data,
    read_run_file,
    require_same_run,
    require_unused,
)
from udas_fast.training.translation.sheet import write_sheet
from udas_fast.training.translation.write import is_complete, write_images

SPLIT = "train"
SAMPLES = 4  # rows of a sample sheet


@config_dataclass
class TranslationConfig:
    """Settings of a translation beside its recipe; ``run.yaml`` holds both."""

    trains: ClassVar[str] = "translation"

    data: DataConfig
    semantic: str | None = None  # run whose segmentation network must see the same before and after
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)  # steps between two reads of the losses
    checkpoint_every: int = Field(default=500, ge=1)

    @property
    def max_bad_steps(self) -> int:
        """No step of a translation may be skipped."""
        return 0


def open_datasets(data: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Open the training images of (source, target), without labels.

    Raises:
        InputError: one is not given, or is not as it should be.
    """
    if not isinstance(data.source, str):
        raise bad("--source", "several" if data.source else "none", "the domain to translate, as KIND:ROOT")
    if data.target is None:
        raise bad("--target", "none", "the domain whose style the source gets, as KIND:ROOT")
    if data.source.startswith("translated:"):  # its manifest could not name the files that hold the labels
        raise bad("--source", data.source, "an original dataset")
    source = open_dataset(data.source, SPLIT, bit_depth=data.bit_depth)
    target = open_dataset(data.target, SPLIT, labelled=False, bit_depth=data.bit_depth)
    return Unlabelled(source), target


def at_native_size(recipe: Recipe, data: DataConfig) -> Recipe:
    """Return ``recipe`` with crops of images as large as each domain's first one: the size of the translation."""

    def fit(geometry: Geometry, dataset: SegmentationDataset) -> Geometry:
        height, width = dataset.unlabelled(0).image.shape[:2]
        crop = geometry.crop or (height, width)
        return replace(geometry, size=(height, width), crop=(min(crop[0], height), min(crop[1], width)))

    inputs = recipe.input
    source, target = open_datasets(data)
    return replace(
        recipe,
        input=replace(inputs, source=fit(inputs.source, source), target=fit(inputs.target, target)),
    )


class Translation:
    """Train CycleGAN by ``recipe`` and translate the source's training images, in folder ``run_dir``.

    Under torchrun all processes do so together.

    Args:
        recipe: one stage of kind ``cyclegan``.
        config: datasets, seed and the rest.
        run_dir: a new folder; :meth:`resume` goes on in one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: before any work, where recipe, data, device or run folder are not as they should be.
    """

    run_dir: Path
    domains: Domains
    _run: Run

    @distributed.stopping_all()
    def __init__(
        self,
        recipe: Recipe,
        config: TranslationConfig,
        *,
        run_dir: str | os.PathLike[str],
        device: str = "auto",
    ) -> None:
        config = replace(config, data=config.data.absolute())
        self._set_up(recipe, config, Path(run_dir), device)
        distributed.on_main(lambda: require_unused(self.run_dir))  # not only after every file has been read
        show_notices(self.domains.verify())
        chosen = replace(config.data, engine=self.domains.chosen_engine)
        self.config = self._run.settings = replace(config, data=chosen)
        distributed.on_main(lambda: begin_run(self.run_dir, self.recipe, self.config))

    @classmethod
    @distributed.stopping_all()
    def resume(
        cls, run_dir: str | os.PathLike[str], *, allow_other_data: bool = False, device: str = "auto"
    ) -> Translation:
        """Go on with the run in ``run_dir``; ``allow_other_data``: as in :meth:`udas_fast.Trainer.resume`.

        Raises:
            InputError: no run of translation there, a damaged file, or a dataset that is not there.
        """
        self = cls.__new__(cls)
        recipe, config = read_run_file(Path(run_dir), TranslationConfig)
        with opening_data(Path(run_dir)):
            open_datasets(config.data)
        self._set_up(recipe, config, Path(run_dir), device)
        self._run.allow_other_data = allow_other_data
        return self

    def _set_up(self, recipe: Recipe, config: TranslationConfig, run_dir: Path, device: str) -> None:
        self.objective_config = _check_recipe(recipe)
        self.recipe, self.config, self.run_dir = recipe, config, run_dir
        self.device = distributed.join(device)
        self.amp = build_amp(recipe.precision, self.device)
        self.source, self.target = open_datasets(config.data)
        self.domains = Domains(
            source=self.source,
            unlabelled=self.target,
            workers=config.data.workers,
            engine=config.data.engine,
            max_bad_files=config.data.max_bad_files,
        )
        check_batch_sizes(recipe, self.domains)
        seed_step(config.seed, "model", 0)
        self.model = CycleGenerators(self.objective_config.width, self.objective_config.blocks)
        self.model.to(self.device)
        self.model.to(memory_format=memory_format(self.amp, self.model))  # type: ignore[call-overload]  # torch's stub lacks it
        networks = {recipe.stages[0].network: self.model}
        self._run = Run(run_dir, recipe, config, self.domains, networks, self.amp)
        self._threads, self._one_at_a_time = max(1, config.data.workers), threading.Lock()

    def describe(self) -> str:
        """Return what is about to run, on what, in a few lines."""
        parameters = sum(p.numel() for p in self.model.to_target.parameters())
        return "\n".join(
            [
                f"recipe {self.recipe.name}: {self.recipe.steps} steps",
                f"two generators of {parameters:,} parameters, {self.device} in {self.amp.name}",
                self.domains.describe(),
            ]
        )

    @distributed.stopping_all()
    def fit(self) -> int:
        """Do what is left: training, sample sheets, images; return the number of images made, 0 in a complete run.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; finished work is kept.
            InputError: a loss is not finite, or a file turned bad.
        """
        if distributed.on_main(lambda: is_complete(self.run_dir, self._threads)):
            return 0
        with ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(locked(self.run_dir)))
            require_same_run(self.run_dir, self.recipe, self.config)
            distributed.on_main(lambda: write_environment(self.run_dir, str(self.device), self.amp.name))
            self._train()
            return write_images(
                self.source,
                lambda image: self._translate(self.model.to_target, image),
                self._manifest(),
                self.run_dir,
                threads=self._threads,
            )

    def _train(self) -> None:
        """Train the generators and draw samples."""
        run, (stage,) = self._run, self.recipe.stages
        (phase,), saved = run.load()
        seed_step(self.config.seed, phase.name, "objective")
        objective = CycleGAN(self.objective_config, self._segmenter()).to(self.device)
        loaders = self.domains.loaders(
            self.recipe.geometries(stage),
            self.recipe.input,
            seed=self.config.seed,
            phase=phase.name,
            bad_files=run.bad_files,
        )
        step = start_step(run, phase, objective, loaders, saved)
        with attempting(run, [phase], saved) as attempt:
            train_phase(run, attempt, phase, step, loaders)
            self.model.eval()
            for name, sheet in distributed.on_main(self._write_sheets).items():
                attempt.recorder.picture(f"translation/{name}", phase.steps, sheet)
            attempt.check_stop()

    def _segmenter(self) -> nn.Module | None:
        if self.config.semantic is None:
            return None
        trained = TrainedModel.load(Path(self.config.semantic), self.device)
        if trained.classes.names != self.source.classes.names:
            raise bad(
                f"--semantic {self.config.semantic}",
                f"{len(trained.classes)} classes of {trained.classes.name}",
                f"the {len(self.source.classes)} of {self.source.name}",
            )
        return trained.model

    def _translate(self, generator: Generator, image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        with self._one_at_a_time, torch.inference_mode(), self.amp.autocast():
            out = to_uint8(generator(to_signed(pixels.to(self.device))))
        return out[0].permute(1, 2, 0).contiguous().cpu().numpy()

    def _write_sheets(self) -> dict[str, Path]:
        """Draw ``pictures/translation-*.png``: samples of each domain, translated and back; return them by domain."""
        there, back = self.model.to_target, self.model.to_source
        paths = {name: self.run_dir / "pictures" / f"translation-{name}.png" for name in ("source", "target")}
        for name, dataset, first, second in (
            ("source", self.source, there, back),
            ("target", self.target, back, there),
        ):
            if paths[name].exists():
                continue
            rows = []
            for index in np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int):
                before = dataset.unlabelled(int(index)).image
                after = self._translate(first, before)
                rows.append((before, after, self._translate(second, after)))
            other = "target" if name == "source" else "source"
            write_sheet(rows, (name, f"in the {other}'s style", "and back"), paths[name])
        return paths

    def _manifest(self) -> Manifest:
        """Return the list of images to write, none of which is there yet."""
        source = self.source
        height, width = source.unlabelled(0).image.shape[:2]
        assert isinstance(self.config.data.source, str)  # open_datasets
        return Manifest(
            source=self.config.data.source,
            split=SPLIT,
            size=(height, width) if source.spec is None else None,
            classes=source.classes.names,
            generator=_checksum(self.model.to_target),
            files={source.id(i): None for i in range(len(source))},
        )


def _checksum(network: nn.Module) -> str:
    """Return the SHA-256 of the weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_recipe(recipe: Recipe) -> CycleGANConfig:
    """Return the configuration of CycleGAN in ``recipe``.

    Raises:
        InputError: it is not one round of CycleGAN, or its crops are smaller than a discriminator's patch.
    """
    objective = recipe.stages[0].objective
    single = len(recipe.stages) == 1 and recipe.stages[0].rounds == 1
    if not isinstance(objective, CycleGANConfig) or not single or recipe.ema is not None:
        raise bad(f"recipe {recipe.name}", "another one", "one round of kind cyclegan, and no ema")
    for name, geometry in (("source", recipe.input.source), ("target", recipe.input.target)):
        if min(geometry.crop or geometry.size) < SHORTEST_PATCH:
            raise bad(f"crop of {name}", geometry.crop or geometry.size, f"sides of {SHORTEST_PATCH} or more")
    return objective
