"""The benchmark's re-statement of the public step gives the package's losses and gradients, whatever option is on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.data.strong_view import StrongConfig
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import Amp
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, NetworkInput, build_model
from udas_fast.objectives import Batches, Losses, Objective, ObjectiveConfig, PrepareContext
from udas_fast.objectives.adaptation import AdaptationConfig, AgreementConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.online_self_training import OnlineSelfTrainingConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.objectives.student_view import ClassMixConfig, CutMixConfig, MaskConfig
from udas_fast.seeding import seed_step
from udas_fast.testing import take_step
from udas_fast.training.networks import compile_backbones

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from public_step import PublicAdaptation, PublicOnlineSelfTraining, PublicSelfTraining, changed

CLASSES = 4
CPU = torch.device("cpu")
PLAIN = MemoryConfig(checkpointing="none")
UDAS = AdaptationConfig(
    translate="lab",
    mixing=MixingConfig(),
    adversary=AdversaryConfig(width=4),
    agreement=AgreementConfig(),
)
LABELS = PseudoLabelConfig(threshold=0.3)
ONLY_LABELS = SelfTrainingConfig(pseudo_labels=LABELS, consistency=None, label_consistency_weight=0.0)
SELF_TRAINING = replace(ONLY_LABELS, translate="lab", mixing=MixingConfig())
CONFIGS = {"adaptation": UDAS, "self_training": SELF_TRAINING}
PUBLIC = {
    AdaptationConfig: PublicAdaptation,
    SelfTrainingConfig: PublicSelfTraining,
    OnlineSelfTrainingConfig: PublicOnlineSelfTraining,
}
# Colours are changed in another order and colour space than the package's.
ONLINE = OnlineSelfTrainingConfig(
    threshold=0.3, strong=StrongConfig(jitter_probability=0.0, blur_probability=0.0)
)
STAGES = pytest.mark.parametrize("stage", CONFIGS)
Found = tuple[Losses, list[Tensor]]
"""Losses by name, and gradients."""


def pair(config: ObjectiveConfig) -> tuple[Objective, Objective]:
    """The package's objective and the public one, with the same weights."""
    torch.manual_seed(0)
    ours = config.build(CLASSES)
    theirs = PUBLIC[type(config)](config, CLASSES)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def groups(model: nn.Module, objective: Objective) -> list[list[nn.Parameter]]:
    """What is trained: the network and, where there are any, the discriminators."""
    return [g for g in (list(model.parameters()), list(objective.discriminator_parameters())) if g]


def gradients(model: nn.Module, objective: Objective) -> list[Tensor]:
    """Of the network and of the discriminators, each as one vector."""
    return [torch.cat([_gradient(p) for p in group]) for group in groups(model, objective)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()


def assert_same(ours: Found, theirs: Found, tolerance: float = 1e-4) -> None:
    """Issue 6 asks for 1e-4: float32 on both sides, the order of the sums differs."""
    losses, gradients = ours
    public_losses, public_gradients = theirs
    assert public_losses.keys() == losses.keys() - {"kept"}
    for name, loss in public_losses.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=tolerance), name
    for gradient, public in zip(gradients, public_gradients, strict=True):
        assert (gradient - public).norm() <= tolerance * public.norm()
        assert public.norm() > 0


TERMS = {
    "adaptation": CONFIGS["adaptation"],
    "MRNet's KL": replace(UDAS, agreement=AgreementConfig(kl="mean")),
    "symmetric KL": replace(UDAS, agreement=AgreementConfig(kl="symmetric")),
    "no KL": replace(UDAS, agreement=None),
    "one level": AdaptationConfig(auxiliary_weight=0, adversary=AdversaryConfig(weights=(0.001, 0), width=4)),
    "mixed images beside the source": replace(UDAS, mixing=MixingConfig(paste="source", replace=False)),
    "self_training": CONFIGS["self_training"],
    "one view": replace(SELF_TRAINING, pseudo_labels=replace(LABELS, views=("identity",))),
    "five views, scaled and mirrored, their mean": replace(
        SELF_TRAINING,
        pseudo_labels=replace(
            LABELS, views=("identity", *["strong"] * 4), scales=(1.25,), flip_view=True, reduce="mean"
        ),
    ),
    "no mixing": ONLY_LABELS,
    "MIC": replace(
        ONLINE, share="batch", class_mix=ClassMixConfig(), masked=MaskConfig(), auxiliary_weight=0.0
    ),
    "boxes, sure pixels": replace(ONLINE, share="pixel", cut_mix=CutMixConfig(probability=1.0)),
    "boxes, then classes, shares of images": replace(
        ONLINE, cut_mix=CutMixConfig(probability=1.0), class_mix=ClassMixConfig(), weight=0.5
    ),
}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("terms", TERMS)
def test_every_term_and_view(
    terms: str,
    labelled: bool,
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
) -> None:
    if not labelled:
        batches = Batches(source=batches.source, unlabelled=batches.unlabelled)
    found = []
    for objective in pair(TERMS[terms]):
        objective.on_round_start(tiny_net)
        tiny_net.train().zero_grad()
        losses = take_step(objective, tiny_net, batches, make_step(seed=3))
        found.append((losses, gradients(tiny_net, objective)))
    assert_same(*found)


@pytest.mark.parametrize("kind", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_single_changes_of_colours_are_the_packages(kind: int) -> None:
    """All but the hue, which turns otherwise in HSV, as far as the values stay in their range."""
    strength = [0.0] * 4
    strength[kind] = 0.2
    strong = StrongConfig(jitter=tuple(strength), jitter_probability=1.0, blur_probability=0.0)
    image = torch.randint(60, 180, (2, 3, 16, 24), dtype=torch.uint8)
    torch.manual_seed(1)
    found = 255 * changed(image, strong)
    torch.manual_seed(1)
    factors = []
    for _ in image:
        torch.rand(())
        drawn = [2 * torch.rand(()).item() - 1 for _ in range(4)]
        torch.rand(())
        factors.append(0.2 * drawn[kind])
    grey = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * image).sum(1, keepdim=True)
    change = torch.tensor(factors)[:, None, None, None]
    expected = [
        image * (1 + change),
        image + change * (image - grey.mean((2, 3), keepdim=True)),
        image + change * (image - grey),
    ]
    if kind < 3:
        torch.testing.assert_close(found, expected[kind], rtol=1e-4, atol=1e-2)
    else:  # value and chroma stay
        for values in ("amax", "amin"):
            torch.testing.assert_close(
                getattr(found, values)(1), getattr(image.float(), values)(1), atol=1e-2, rtol=0
            )
        assert (found - image).abs().mean() > 3


def network(norm: str = "batch", **options: Any) -> nn.Module:
    """DeepLabV2 as it is after training: statistics and affines are not those of a new network."""
    torch.manual_seed(1)
    model = build_model(ModelConfig(backbone="resnet18", width=16, norm=norm, **options), CLASSES)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
            with torch.no_grad():
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.1)
    return smooth(model).train()


def smooth(module: nn.Module) -> nn.Module:
    """``module`` without kinks: the rounding of other kernels turns a ReLU at zero, each 1e-3 of the gradient."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(parent, name, nn.SiLU())
    return module


def public_network(norm: str, **options: Any) -> nn.Module:
    """The same network of nn.BatchNorm2d alone; frozen ones are left in evaluation mode."""
    model = network("batch", **options)
    if norm == "frozen":
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval().requires_grad_(False)
    return model


@cache
def three() -> Batches:
    """Batches of three 48x64 images, so that micro-batches of two differ in size; source images in labelled pixels."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (3, 3, 3, 48, 64), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, CLASSES, (3, 48, 64), dtype=torch.uint8, generator=generator)
    label[0, :40] = 255
    source, labelled, unlabelled = image
    ids = ["0", "1", "2"]
    return Batches(Batch(source, label, ids), Batch(labelled, label, ids), Batch(unlabelled, None, ids))


def half_way(backward: Callable[[Tensor], None], layout: torch.memory_format) -> PrepareContext:
    return PrepareContext(
        step=1,
        steps=2,
        lr=0.1,
        generator=torch.Generator().manual_seed(3),
        backward=backward,
        input=NetworkInput(channels_last=layout is torch.channels_last),
    )


@cache
def public(stage: str, norm: str, align_corners: bool) -> Found:
    """The public step in float32."""
    objective = smooth(pair(CONFIGS[stage])[1])
    model = public_network(norm, align_corners=align_corners)
    objective.on_round_start(model)
    losses = take_step(objective, model, three(), half_way(Tensor.backward, torch.contiguous_format))
    return losses, gradients(model, objective)


def ours(
    stage: str,
    norm: str = "batch",
    memory: MemoryConfig = PLAIN,
    layout: torch.memory_format = torch.contiguous_format,
    align_corners: bool = False,
    together: bool = False,
    compiled: bool = False,
) -> Found:
    """The package's step with these options; ``together``: one backward pass for all losses at the end."""
    objective = smooth(pair(CONFIGS[stage])[0])
    model = network(norm, align_corners=align_corners).to(memory_format=layout)
    for module in (model, objective):
        memory.apply(module)
    objective.on_round_start(model)
    if compiled:
        compile_backbones([model], memory, CPU)
    kept: list[Tensor] = []
    context = half_way(kept.append if together else Tensor.backward, layout)
    losses = take_step(objective, model, three(), context)
    if together:
        sum(kept).backward()
    return losses, gradients(model, objective)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing layer3": {"memory": MemoryConfig(checkpointing="layer3")},
    "checkpointing layers2-4": {"memory": MemoryConfig(checkpointing="layers2-4")},
    "checkpointing all": {"memory": MemoryConfig(checkpointing="all")},
    "frozen norms, folded": {"norm": "frozen"},
    "norms by domain": {"norm": "domain"},
    "norms over processes": {"norm": "sync"},
    "micro-batches of 1": {"norm": "frozen", "memory": MemoryConfig(micro_batch_size=1)},
    "micro-batches of 2": {"norm": "frozen", "memory": MemoryConfig(micro_batch_size=2)},
    "micro-batches, checkpointing all": {
        "norm": "frozen",
        "memory": MemoryConfig(checkpointing="all", micro_batch_size=2),
    },
    "channels_last": {"layout": torch.channels_last},
    "channels_last, frozen": {"layout": torch.channels_last, "norm": "frozen"},
    "aligned corners": {"align_corners": True},
    "one backward pass": {"together": True},
}


@pytest.mark.slow
@STAGES
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(option: str, stage: str) -> None:
    options = OPTIONS[option]
    theirs = public(stage, options.get("norm", "batch"), options.get("align_corners", False))
    assert_same(ours(stage, **options), theirs)


@pytest.mark.slow
@STAGES
def test_compiled(stage: str) -> None:
    try:
        found = ours(stage, compiled=True)
    except InputError as error:
        pytest.skip(str(error))
    assert_same(found, public(stage, "batch", False))


class Moved:
    """How far training moves every group of parameters: a vector each."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self.groups = groups(model, objective)
        self.before = [[p.detach().clone() for p in group] for group in self.groups]

    def now(self) -> list[Tensor]:
        return [
            torch.cat([(p.detach() - b).flatten() for p, b in zip(group, before, strict=True)])
            for group, before in zip(self.groups, self.before, strict=True)
        ]


STEPS, LR = 3, 1e-3


@cache
def public_loop(stage: str, name: str, first: int = 0) -> Found:
    """The last losses and the way of the weights by the public loop in float32, no optimiser fused."""
    objective, model = smooth(pair(CONFIGS[stage])[1]), network()
    objective.on_round_start(model)
    parameters = [
        {"params": list(model.backbone.parameters()), "lr": LR},
        {"params": list(model.head_parameters()), "lr": 10 * LR},
    ]
    plain: dict[str, Any] = {"weight_decay": 5e-4, "foreach": False, "fused": False}
    if name == "sgd":
        optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(parameters, momentum=0.9, **plain)]
    else:
        optimizers = [{"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](parameters, **plain)]
    if objective.discriminator_parameters():
        optimizers.append(
            torch.optim.Adam(objective.discriminator_parameters(), lr=1e-4, betas=(0.9, 0.99), foreach=False)
        )
    initial = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    moved = Moved(model, objective)
    for i in range(first, STEPS):
        for optimizer, rates in zip(optimizers, initial, strict=True):
            optimizer.zero_grad()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - i / STEPS * 150 / 250) ** 0.9  # stopped at 150,000 of 250,000
        context = PrepareContext(
            step=i,
            steps=STEPS,
            lr=optimizers[0].param_groups[0]["lr"],
            generator=seed_step(0, stage, i),
            backward=Tensor.backward,
            input=NetworkInput(),
        )
        losses = take_step(objective, model, three(), context)
        for optimizer in optimizers:
            optimizer.step()
    return losses, moved.now()


def our_loop(stage: str, name: str, precision: str, scaled: bool, first: int = 0) -> Found:
    """The same by the package's steps."""
    objective, model = smooth(pair(CONFIGS[stage])[0]), network()
    objective.on_round_start(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    amp = Amp(CPU, precision, scaler, torch.zeros((), dtype=torch.int64))
    step = TrainStep(stage, STEPS, model, objective, OptimizerConfig(name=name, lr=LR), amp, seed=0)
    step.done = first
    moved, losses = Moved(model, objective), {}
    while step.done < STEPS:
        losses |= step(three())
    assert losses.pop("scaler_skips", 0) == 0
    return losses, moved.now()


@pytest.mark.slow
@STAGES
@pytest.mark.parametrize(
    ("name", "scaled"), [("sgd", False), ("sgd", True), ("adam", False), ("adamw", False)]
)
def test_fused_optimisers_and_loss_scaling_end_at_the_same_weights(
    name: str, scaled: bool, stage: str
) -> None:
    # Adam divides each gradient by its own size, and so keeps the rounding of those that cancel.
    tolerance = 1e-4 if name == "sgd" else 5e-4
    assert_same(our_loop(stage, name, "fp32", scaled), public_loop(stage, name), tolerance)


@pytest.mark.slow
@STAGES
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # 8 and 11 bits, so 0.4 % and 0.05 % a rounding, on the way through 20 layers and back.
    [("bf16", 0.05), ("fp16", 0.01)],
)
def test_sixteen_bits_stay_close(precision: str, tolerance: float, stage: str) -> None:
    losses, ways = our_loop(stage, "sgd", precision, precision == "fp16", first=STEPS - 1)
    public_losses, public_ways = public_loop(stage, "sgd", first=STEPS - 1)
    # The network's: a new discriminator's gradient is a small difference of what it answers to both domains.
    assert_same((losses, ways[:1]), (public_losses, public_ways[:1]), tolerance)
