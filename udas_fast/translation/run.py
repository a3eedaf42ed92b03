"""A run of `udas-fast translate`: CycleGAN by the one training loop, then every source image translated."""

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
from pydantic.dataclasses import dataclass
from torch import nn

from udas_fast import distributed
from udas_fast.data import BadFiles, Geometry, SegmentationDataset, Unlabelled, open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.data.translated import Manifest
from udas_fast.distributed import join
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.engine.runner import open_runner
from udas_fast.errors import bad
from udas_fast.inference import TrainedModel
from udas_fast.models import SHORTEST_PATCH, CycleGenerators, Generator, to_signed, to_uint8
from udas_fast.objectives import STRICT
from udas_fast.objectives.cyclegan import CycleGAN
from udas_fast.recipes import Recipe
from udas_fast.seeding import seed_step
from udas_fast.training.environment import write_environment
from udas_fast.training.lock import locked
from udas_fast.training.run_folder import begin_run, read_run_file, require_same_run, require_unused
from udas_fast.translation.sheet import write_sheet
from udas_fast.translation.write import absolute, is_complete, write_images

SPLIT = "train"
SAMPLES = 4  # rows of a sample sheet


@dataclass(frozen=True, config=STRICT)
class TranslationConfig:
    """What a run is beside its recipe; ``run.yaml`` holds both."""

    trains: ClassVar[str] = "translation"

    data: DataConfig
    semantic: str | None = None  # run whose segmentation network the translation is to leave alone
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)  # steps between two reads of the losses
    checkpoint_every: int = Field(default=500, ge=1)


def open_domains(data: DataConfig) -> Domains:
    """Both domains' training images, without labels.

    Raises:
        InputError: one is not given, or is not as it should be.
    """
    for name, spec in (("--source", data.source), ("--target", data.target)):
        if spec is None:
            raise bad(name, "none", "the domain of that name, as KIND:ROOT")
    if data.source.startswith("translated:"):  # its manifest could not name the files that hold the labels
        raise bad("--source", data.source, "an original dataset")
    source, target = open_dataset(data.source, SPLIT), open_dataset(data.target, SPLIT, labelled=False)
    return Domains(
        source=Unlabelled(source),
        unlabelled=target,
        workers=data.workers,
        engine=data.engine,
        max_bad_files=data.max_bad_files,
    )


def at_native_size(recipe: Recipe, domains: Domains) -> Recipe:
    """``recipe`` with crops of images as large as each domain's first one, which is how they are translated."""

    def fit(geometry: Geometry, dataset: SegmentationDataset) -> Geometry:
        size = dataset.unlabelled(0).image.shape[:2]
        crop = tuple(min(pair) for pair in zip(geometry.crop or size, size, strict=True))
        return replace(geometry, size=size, crop=crop)

    inputs = recipe.input
    source, target = fit(inputs.source, domains.source), fit(inputs.target, domains.unlabelled)
    return replace(recipe, input=replace(inputs, source=source, target=target))


class Translation:
    """Trains CycleGAN by ``recipe`` and translates the source's training images, in folder ``run``.

    Under torchrun all processes do so together.

    Args:
        recipe: one stage of kind ``cyclegan``.
        config: datasets, seed and the rest.
        run: a new folder; :meth:`resume` goes on in one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: before any work, where recipe, data, device or run folder are not as they should be.
    """

    @distributed.stopping_all()
    def __init__(
        self, recipe: Recipe, config: TranslationConfig, *, run: str | os.PathLike[str], device: str = "auto"
    ) -> None:
        self._set_up(recipe, config, Path(run), device)
        distributed.on_main(lambda: require_unused(self.run))  # not only after every file has been read
        self.domains.verify()
        chosen = replace(config.data, engine=self.domains.chosen_engine)
        self.config = replace(config, data=chosen)
        distributed.on_main(lambda: begin_run(self.run, self.recipe, self.config))

    @classmethod
    @distributed.stopping_all()
    def resume(cls, run: str | os.PathLike[str], *, device: str = "auto") -> Translation:
        """Go on with the run in folder ``run``.

        Raises:
            InputError: no run of translation there, or a damaged file.
        """
        self = cls.__new__(cls)
        self._set_up(*read_run_file(Path(run), TranslationConfig), Path(run), device)
        return self

    def _set_up(self, recipe: Recipe, config: TranslationConfig, run: Path, device: str) -> None:
        single = len(recipe.stages) == 1 and recipe.stages[0].rounds == 1
        if recipe.trains != "translation" or not single or recipe.ema is not None:
            raise bad(f"recipe {recipe.name}", "another one", "one round of kind cyclegan, and no ema")
        for name, geometry in (("source", recipe.input.source), ("target", recipe.input.target)):
            if min(geometry.crop or geometry.size) < SHORTEST_PATCH:
                raise bad(
                    f"crop of {name}", geometry.crop or geometry.size, f"sides of {SHORTEST_PATCH} or more"
                )
        self.recipe, self.config, self.run = recipe, config, run
        self.stage = recipe.stages[0]
        self.device = join(device)
        self.amp = build_amp(recipe.precision, self.device)
        self.domains = open_domains(config.data)
        self.domains.require_batch_sizes(recipe)
        self.checkpoints = CheckpointFolder(run / "checkpoints")
        seed_step(config.seed, "model", 0)
        model = CycleGenerators(self.stage.objective.width, self.stage.objective.blocks)
        self.model = model.to(self.device, memory_format=memory_format(self.amp, model))
        self._threads, self._one_at_a_time = max(1, config.data.workers), threading.Lock()

    def describe(self) -> str:
        """What is about to run, on what, in a few lines."""
        parameters = sum(p.numel() for p in self.model.to_target.parameters())
        return "\n".join(
            [
                f"recipe {self.recipe.name}: {self.stage.steps} steps",
                f"two generators of {parameters:,} parameters, {self.device} in {self.amp.name}",
                self.domains.describe(),
            ]
        )

    @distributed.stopping_all()
    def fit(self) -> int:
        """Do what is left: training, sample sheets, images; how many images were made, 0 in a complete run.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; what was done is kept.
            InputError: a loss is not finite, or a file turned bad.
        """
        if distributed.on_main(lambda: is_complete(self.run, self._threads)):
            return 0
        with ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(locked(self.run)))
            require_same_run(self.run, self.recipe, self.config)
            return self._train_and_write()

    def _train_and_write(self) -> int:
        distributed.on_main(lambda: write_environment(self.run, str(self.device), self.amp.name))
        self._train()
        return write_images(
            self.domains.source,
            lambda image: self._translate(self.model.to_target, image),
            self._manifest(),
            self.run,
            threads=self._threads,
        )

    def _train(self) -> None:
        config, stage = self.config, self.stage
        phase = Phase(stage.name, stage.steps, stage.optimizer)
        seed_step(config.seed, phase.name, "objective")
        objective = CycleGAN(stage.objective, self._segmenter()).to(self.device)
        faults = BadFiles(config.data.max_bad_files)
        streams = self.domains.streams(
            stage.objective.needs,
            self.recipe.input,
            mixed=False,
            seed=config.seed,
            phase=phase.name,
            faults=faults,
        )
        loop = Loop(phase, self.model, objective, streams, self.amp, config.seed, faults=faults)
        if (saved := self.checkpoints.load()) is not None:
            loop.load_state_dict(saved["loop"])
            faults.found[:] = saved.get("bad_files", ())  # older checkpoints do not say
        with open_runner(
            self.run,
            self.checkpoints,
            first=loop.done,
            total=phase.steps,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
        ) as runner:
            runner.run(loop, 0, lambda: {"bad_files": faults.found})
            self.model.eval()
            for name, sheet in distributed.on_main(self._write_sheets).items():
                runner.recorder.picture(f"translation/{name}", loop.done, sheet)
            runner.check_stop()

    def _segmenter(self) -> nn.Module | None:
        if self.config.semantic is None:
            return None
        trained = TrainedModel.load(Path(self.config.semantic), self.device)
        if trained.classes.names != self.domains.source.classes.names:
            raise bad(
                f"--semantic {self.config.semantic}",
                f"{len(trained.classes)} classes of {trained.classes.name}",
                f"the {len(self.domains.source.classes)} of {self.domains.source.name}",
            )
        return trained.model

    def _translate(self, generator: Generator, image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        with self._one_at_a_time, torch.inference_mode(), self.amp.autocast():
            out = to_uint8(generator(to_signed(pixels.to(self.device))))
        return out[0].permute(1, 2, 0).contiguous().cpu().numpy()

    def _write_sheets(self) -> dict[str, Path]:
        """``pictures/translation-*.png`` by domain: samples of it, translated and back."""
        there, back = self.model.to_target, self.model.to_source
        paths = {name: self.run / "pictures" / f"translation-{name}.png" for name in ("source", "target")}
        for name, dataset, first, second in (
            ("source", self.domains.source, there, back),
            ("target", self.domains.unlabelled, back, there),
        ):
            if paths[name].exists():
                continue
            rows = []
            for index in np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int):
                before = dataset.unlabelled(int(index)).image
                after = self._translate(first, before)
                rows.append((before, after, self._translate(second, after)))
            other = "target" if name == "source" else "source"
            write_sheet(rows, (name, f"in the {other}'s look", "and back"), paths[name])
        return paths

    def _manifest(self) -> Manifest:
        """What is to be written, with no file yet."""
        source = self.domains.source
        drawn = source.description is None
        return Manifest(
            source=absolute(self.config.data.source),
            split=SPLIT,
            size=source.unlabelled(0).image.shape[:2] if drawn else None,
            classes=source.classes.names,
            generator=_checksum(self.model.to_target),
            files={source.id(i): None for i in range(len(source))},
        )


def _checksum(network: nn.Module) -> str:
    """SHA-256 of the weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
