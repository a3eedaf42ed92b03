"""The trainer: runs a recipe on a model and two domains, in a run folder that can be continued."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

import numpy as np
from torch import nn

from udas_fast import distributed
from udas_fast.config import from_dict, load_yaml
from udas_fast.data import UserLoader
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.data.identity import existing_path
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.optim import MakeOptimizer, apex_sgd
from udas_fast.engine.precision import build_amp, network_input
from udas_fast.engine.step import TrainStep, start_objective
from udas_fast.errors import bad
from udas_fast.evaluation import Scores
from udas_fast.inference import TrainedModel
from udas_fast.models import NetworkFunction, OwnNetwork, build_network
from udas_fast.objectives import Objective
from udas_fast.recipes import Phase, Recipe, get_recipe
from udas_fast.seeding import seed_step
from udas_fast.training.environment import write_environment
from udas_fast.training.fit import Attempt, Run, Saved, attempting, start_step, train_phase
from udas_fast.training.labelling import LabelledRound, label_to_disk, report_round
from udas_fast.training.networks import Networks, ran_out_of_memory
from udas_fast.training.requirements import (
    check_data,
    count_weights,
    open_domains,
    show_notices,
    verify_data,
)
from udas_fast.training.results import Results
from udas_fast.training.run_folder import (
    RunConfig,
    begin_run,
    locked,
    opening_data,
    read_run_file,
    require_objects,
    require_same_run,
    require_unused,
    write_run_file,
)
from udas_fast.training.translation.first import check_translation, translate_source, untranslated_twice


class Trainer:
    """Train a network by a recipe on two domains; under torchrun all processes do so together.

    Args:
        recipe: the recipe, or its name (:func:`udas_fast.get_recipe`).
        data: datasets by name, or datasets and loaders as objects.
        model: any network that :func:`udas_fast.models.to_output` understands, or the function
            ``build(num_classes, **options)`` that makes it, whose name the run's files have; options are the keywords
            of a ``functools.partial``. None builds the recipe's own.
        run_dir: the run's folder; it must be new, or hold the same run (:meth:`resume`).
        weights: checkpoint to start from, see :func:`udas_fast.models.load_weights`.
        reset_head: leave out the head of ``weights``, which is of other classes.
        start: finished run, or its ``model.safetensors``, whose model the first stage starts from, and the fresh
            students of later ones.
        seed: seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        log_every: steps between two reads of the losses.
        checkpoint_every: steps between two checkpoints.
        optimizer: returns the optimiser of each network that is trained, with any parameter groups; None: the
            recipe's. The recipe's schedule scales the rates of its groups.
        evaluate_every: steps between two scores of the network on the target's val split; None: after each round only.
        keep_best: keep the network of the highest of these scores too, as ``best.safetensors``.
        max_bad_steps: steps with a loss or gradient that is not finite which are skipped and counted; one more ends
            the run. Above 0 the host waits for every step.
        callbacks: called for steps, pictures and phases in the main process, see :class:`udas_fast.Callback`.

    Raises:
        InputError: before any work, where data, weights, device or run folder are not as they should be.
    """

    config: RunConfig
    run_dir: Path
    domains: Domains
    _run: Run

    @distributed.stopping_all()
    def __init__(
        self,
        recipe: Recipe | str,
        data: DataConfig | Domains,
        model: nn.Module | NetworkFunction | None = None,
        *,
        run_dir: str | os.PathLike[str],
        weights: str | None = None,
        reset_head: bool = False,
        start: str | None = None,
        seed: int = 0,
        device: str = "auto",
        log_every: int = 20,
        checkpoint_every: int = 500,
        max_bad_steps: int = 0,
        evaluate_every: int | None = None,
        keep_best: bool = False,
        optimizer: MakeOptimizer | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        _check_types(recipe, data, model)
        self.device = distributed.join(device)
        recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
        data = data.absolute() if isinstance(data, DataConfig) else data
        recipe = untranslated_twice(recipe, data)
        domains = open_domains(data, recipe) if isinstance(data, DataConfig) else data
        objects = {"model": model, "optimizer": optimizer}
        settings = {
            "data": data if isinstance(data, DataConfig) else None,
            "labelled": domains.labelled_ids() if isinstance(data, DataConfig) else None,
            "network": OwnNetwork.of(model) if _is_function(model) else None,
            "given": tuple(name for name, given in objects.items() if given is not None),
            "engine": domains.chosen_engine,
            "weights": weights and existing_path(weights),
            "reset_head": reset_head,
            "start": start and existing_path(start),
            "seed": seed,
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
            "max_bad_steps": max_bad_steps,
            "evaluate_every": evaluate_every,
            "keep_best": keep_best,
        }
        config = from_dict(RunConfig, settings, "Trainer")
        self._set_up(recipe, domains, model, Path(run_dir), config, optimizer, callbacks)
        distributed.on_main(lambda: require_unused(self.run_dir))  # not only after every file has been read
        verify_data(self.recipe, self.domains)
        self.config = self._run.settings = replace(config, class_weights=count_weights(recipe, domains))
        distributed.on_main(lambda: begin_run(self.run_dir, self.recipe, self.config))

    @classmethod
    @distributed.stopping_all()
    def resume(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        model: nn.Module | NetworkFunction | None = None,
        data: Domains | None = None,
        max_bad_files: int = 0,
        allow_other_data: bool = False,
        device: str = "auto",
        optimizer: MakeOptimizer | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trainer:
        """Go on with the run in ``run_dir``; pass ``model``, ``data`` and ``optimizer`` where they began as objects.

        ``run.yaml`` says what is done; edits since the checkpoint are reported on stderr. A method of the user's own
        is imported as ``run.yaml`` says.

        A ``max_bad_files`` above the run's own becomes its limit from here on, in ``run.yaml`` too; datasets
        that are objects have a limit of their own.
        :meth:`fit` refuses files of other names or sizes than those that the checkpoint was made with and says which;
        with ``allow_other_data`` it goes on with them.

        Raises:
            InputError: no run there, a damaged file, a method that cannot be imported, a dataset that is not there, or
                objects that were given at first and are missing now.
        """
        self = cls.__new__(cls)
        self.device = distributed.join(device)
        folder = Path(run_dir)
        recipe, config = read_run_file(folder, RunConfig)
        require_objects(folder, config, model=model, data=data, optimizer=optimizer)
        if data is None and config.data is not None and max_bad_files > config.data.max_bad_files:
            config = replace(config, data=replace(config.data, max_bad_files=max_bad_files))
            distributed.on_main(lambda: cls._rewrite(folder, recipe, config))
        if data is None:
            assert config.data is not None  # require_objects
            with opening_data(folder):
                data = open_domains(config.data, recipe, config.labelled)
        domains = replace(data, engine=config.engine)
        self._set_up(recipe, domains, model, folder, config, optimizer, callbacks)
        self._run.allow_other_data = allow_other_data
        show_notices(domains.notices)
        return self

    @staticmethod
    def _rewrite(run_dir: Path, recipe: Recipe, config: RunConfig) -> None:
        with locked(run_dir):  # another process may be training there
            write_run_file(run_dir, recipe, config)

    def _set_up(
        self,
        recipe: Recipe,
        domains: Domains,
        model: nn.Module | NetworkFunction | None,
        run_dir: Path,
        config: RunConfig,
        optimizer: MakeOptimizer | None,
        callbacks: Sequence[Callback],
    ) -> None:
        if recipe.trains != "segmentation":
            raise bad(
                f"recipe {recipe.name}",
                f"one that trains {recipe.trains}",
                "one for segmentation: `udas-fast translate` runs this",
            )
        if any(stage.optimizer.name == "apex_sgd" for stage in recipe.stages):
            apex_sgd()  # now, and not when its stage begins
        check_translation(recipe, config.data)
        stages = tuple(
            replace(stage, model=stage.model and stage.model.resolved()) for stage in recipe.stages
        )
        recipe = replace(recipe, model=recipe.model.resolved(), stages=stages)
        self.recipe, self.config, self.run_dir, self.domains = recipe, config, run_dir, domains
        amp = build_amp(recipe.precision, self.device)
        check_data(recipe, domains)
        if config.evaluate_every is not None and domains.val is None:
            raise bad(
                "evaluate_every", "no val split with labels", "a target that has one, or no evaluate_every"
            )
        self.classes = domains.classes()
        self.callbacks = tuple(callbacks) if distributed.is_main() else ()
        if model is not None and not isinstance(model, nn.Module):
            seed_step(config.seed, "model", 0)
            options = OwnNetwork.of(model) if config.network is None else config.network
            model = build_network(model, len(self.classes), options.options)
        networks: dict[str, nn.Module] = {}
        self._run = Run(run_dir, recipe, config, domains, networks, amp, optimizer, self.callbacks)
        self.networks = Networks(
            model,
            recipe,
            config,
            self.classes,
            amp,
            labelled=domains.labelled is not None,
            begun=self._run.checkpoints.newest() is not None,
        )
        self._run.networks = self.networks
        self._results = Results(
            run_dir,
            recipe,
            config.seed,
            self.classes,
            config.network,
            domains.val,
            domains.bit_depth,
            domains.workers,
            self._run.scores,
        )

    @property
    def model(self) -> nn.Module:
        """The network that is trained: now, or by the last stage where no run is under way."""
        return self.networks.trained

    @property
    def scores(self) -> dict[str, Scores]:
        """Scores on the target's val split by phase."""
        return self._run.scores

    @property
    def complete(self) -> bool:
        """True where the run is complete: its model is written last."""
        return self._results.complete

    def describe(self) -> str:
        """Return what is about to run, on what, in a few lines."""
        parameters = sum(p.numel() for p in self.model.parameters())
        networks = self.networks
        checkpointing, size = networks.memory.checkpointing, networks.memory.micro_batch_size
        memory = f"checkpointing {checkpointing}" + (f", micro-batches of {size}" if size else "")
        phases = ", ".join(phase.name for phase in self.recipe.phases())
        lines = [
            f"recipe {self.recipe.name}: {phases}; {self.recipe.steps} steps",
            f"network {type(self.model).__name__}, {parameters:,} parameters, {len(self.classes)} classes, "
            f"{self._processes()} in {networks.amp.name}, {memory}",
            self.domains.describe(),
        ]
        if (weights := self.config.class_weights) is not None:
            named = zip(self.classes.names, weights, strict=True)
            lines.append(f"class weights {', '.join(f'{name} {weight:.2f}' for name, weight in named)}")
        if networks.selected is not None:
            lines.append(f"starts from {self.config.start}, selected: {networks.selected}")
        report = networks.weights_report
        return "\n".join(lines if report is None else [*lines, report.summary()])

    def _processes(self) -> str:
        world = distributed.get_world_size()
        return str(self.device) if world == 1 else f"{world} processes on {self.device.type}"

    @distributed.stopping_all()
    def fit(self) -> dict[str, Scores]:
        """Run every phase that is left; return the scores by phase, which ``scores.json`` has too.

        A run that is complete does nothing and returns its scores.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            InputError: a loss is not finite, a file turned bad, or the GPU's memory was not enough.
        """
        if distributed.on_main(lambda: self.complete):
            TrainedModel.load(self.run_dir, self.device, self.model)
            self._results.read_scores()
            return self.scores
        with ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(locked(self.run_dir)))
            require_same_run(self.run_dir, self.recipe, self.config)
            distributed.on_main(self._begin)
            if self.recipe.translation is not None:
                self._run.use(self._with_translated_source(self.recipe.translation))
                self.domains = self._run.domains
            phases, saved = self._run.load()
            with attempting(self._run, phases, saved) as attempt:
                for phase in phases:
                    try:
                        self._run_phase(phase, attempt, saved)
                    except (RuntimeError, MemoryError) as error:
                        if not ran_out_of_memory(error):
                            raise
                        raise self.networks.out_of_memory(phase.name, error) from error
                    saved = None
            distributed.on_main(self._finish)
        return self.scores

    def _with_translated_source(self, recipe: Recipe) -> Domains:
        """Return the run's data with the source's images as a CycleGAN by ``recipe`` shows them, made now or before."""
        assert self.config.data is not None  # check_translation
        source = translate_source(
            recipe,
            self.config.data,
            self.run_dir / "translation",
            settings=self.config,
            allow_other_data=self._run.allow_other_data,
            device=str(self.device),
        )
        return replace(self.domains, source=source)

    def _run_phase(self, phase: Phase, attempt: Attempt, saved: Saved | None) -> None:
        """Train and score one phase, from its start or from the state ``saved``."""
        run, stage, networks = self._run, phase.stage, self.networks
        networks.trained = networks[stage.network]
        objective = self._start_objective(phase, saved)
        labelled_round = self._labelled_round(phase, objective, attempt)
        labeller = None if labelled_round is None else objective.labeller
        unlabelled = None
        if labelled_round is not None and labeller is not None and labeller.config.labels == "disk":
            with networks.amp.autocast():
                unlabelled = label_to_disk(labeller, labelled_round)
        loaders = self.domains.loaders(
            self.recipe.geometries(stage),
            self.recipe.input,
            seed=self.config.seed,
            phase=phase.name,
            views=stage.objective.requirements.views,
            bad_files=run.bad_files,
            unlabelled=unlabelled,
        )
        step = start_step(run, phase, objective, loaders, saved)

        train_phase(
            run,
            attempt,
            phase,
            step,
            loaders,
            before_step=lambda: self._score_during(phase, objective, step, attempt),
        )

        if (result := objective.result(step.model)) is not step.model:
            networks.trained.load_state_dict(result.state_dict())
        objective.on_round_end(networks.trained)
        end = phase.first_step + phase.steps
        if labelled_round is not None and labeller is not None:
            with networks.amp.autocast():
                distributed.on_main(partial(report_round, labeller, labelled_round))
            report = labelled_round.folder / "report.json"
            attempt.recorder.pseudo_labels(end, labelled_round.picture, report)
        self._score(phase, objective, end, attempt)

    def _start_objective(self, phase: Phase, saved: Saved | None) -> Objective:
        networks = self.networks
        seed_step(self.config.seed, phase.name, "objective")
        objective = start_objective(
            phase.stage.objective,
            networks.trained,
            networks,
            num_classes=len(self.classes),
            memory=networks.memory,
            class_weights=self.config.class_weights,
            class_names=self.classes.names,
            images=self.domains.image_counts(),
            device=self.device,
        )
        if phase.stage.objective.requirements.fresh_start:
            networks.begin_anew(phase.name, "student")
        if saved is not None:
            objective.load_state_dict(saved["step"]["objective"])  # labels are made by the teacher that was
        return objective

    def _labelled_round(self, phase: Phase, objective: Objective, attempt: Attempt) -> LabelledRound | None:
        """Return the images that the objective labels in ``phase``; None where it labels none, or a user's loader's."""
        images = self.domains.unlabelled
        if objective.labeller is None or images is None or isinstance(images, UserLoader):
            return None
        return LabelledRound(
            name=phase.name,
            images=images,
            size=self.recipe.input.target.size,
            folder=self.run_dir / "pseudo_labels" / phase.name,
            picture=self.run_dir / "pictures" / f"{phase.name}-pseudo.png",
            generator=partial(seed_step, self.config.seed, phase.name),
            normalize=network_input(self.networks.amp, self.networks.trained).normalize,
            check_stop=attempt.check_stop,
        )

    def _score_during(self, phase: Phase, objective: Objective, step: TrainStep, attempt: Attempt) -> None:
        """Score the network that ``phase`` would give now, every ``evaluate_every`` steps of the run."""
        every, done = self.config.evaluate_every, phase.first_step + step.done
        if every is None or step.done == 0 or done % every:
            return
        attempt.recorder.flush()  # first: it says which loss is not finite
        network = objective.result(step.model)
        if network is step.model and step.average is not None:
            network = step.average.network
        self._take_scores(phase, done, network, self._results.score(network), attempt)
        attempt.recorder.start_clock()

    def _take_scores(
        self, phase: Phase, step: int, network: nn.Module, scores: Scores, attempt: Attempt
    ) -> None:
        """Record the ``scores`` of ``network`` after ``step`` steps, and keep it where it is the best."""
        if self.config.evaluate_every is not None:
            is_final = phase.stage.network == self.recipe.stages[-1].network  # and not another's teacher
            keep = partial(
                self._results.keep_best, network, self.networks.model_config, step, scores.protocol
            )
            kept = keep if self.config.keep_best and is_final else None
            # All wait: torchrun ends the others where one has ended, and that must not be while a file is written.
            distributed.on_main(lambda: attempt.recorder.evaluated(phase.name, step, scores, kept))
        for callback in self.callbacks:
            callback.on_scores(phase.name, step, scores)

    def _score(self, phase: Phase, objective: Objective, step: int, attempt: Attempt) -> None:
        """Score the networks of a phase after ``step`` steps of the run; write, draw and report the scores."""
        networks = {f"{phase.name}.{name}": network for name, network in objective.scored().items()}
        networks[phase.name] = self.networks.trained
        scores = {}
        if self._results.val is not None:
            scores = {name: self._results.score(network) for name, network in networks.items()}
            self.scores.update(scores)
            attempt.recorder.scores(step, {f"{phase.name}/miou": scores[phase.name].miou})
            self._take_scores(phase, step, self.networks.trained, scores[phase.name], attempt)
            distributed.on_main(self._results.write_scores)
            distributed.on_main(lambda: self._results.draw(phase.name, self.networks.trained))
            attempt.recorder.picture("validation", step, self._results.picture)
        for callback in self.callbacks:
            callback.on_phase_end(phase.name, step, {name: score.miou for name, score in scores.items()})

    def _begin(self) -> None:
        write_environment(self.run_dir, self._processes(), self.networks.amp.name)
        document = load_yaml((self.run_dir / "run.yaml").read_text(encoding="utf-8"))
        for callback in self.callbacks:
            callback.on_run_begin(self.run_dir, document)

    def _finish(self) -> None:
        self._results.finish(self.model, self.networks.model_config)
        for callback in self.callbacks:
            callback.on_run_end(self.run_dir)

    def evaluate(self) -> Scores:
        """Score the model as it is on the target's val split, labels at their native size.

        Among several processes all have to call this, and all get the scores of the whole split.

        Raises:
            InputError: there is no val split.
        """
        return self._results.score(self.model)

    def predict(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (train ids uint8, confidence float32), both ``[H, W]``, of a uint8 RGB image ``[H, W, 3]``."""
        return self._results.trained(self.model, self.networks.model_config).predict(image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with its classes, input size and protocol (:class:`udas_fast.TrainedModel`).

        Among several processes the main one writes.
        """
        if distributed.is_main():
            self._results.trained(self.model, self.networks.model_config).save(Path(path))


def _check_types(recipe: object, data: object, model: object) -> None:
    """Raise InputError for arguments of the wrong kind, a network in the recipe's place among them."""
    if not isinstance(recipe, (Recipe, str)):
        raise bad(
            "Trainer: recipe", type(recipe).__name__, "a Recipe or the name of one; model= takes the network"
        )
    if not isinstance(data, (DataConfig, Domains)):
        raise bad("Trainer: data", type(data).__name__, "a DataConfig, or Domains with datasets as objects")
    if model is not None and not isinstance(model, nn.Module) and not _is_function(model):
        raise bad(
            "Trainer: model", type(model).__name__, "a torch.nn.Module, or the function that builds one"
        )


def _is_function(model: object) -> TypeGuard[NetworkFunction]:
    return callable(model) and not isinstance(model, nn.Module)
