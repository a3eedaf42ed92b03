"""Whole steps against the papers' formulas in float64: what each backward pass brings, and to whom."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.data.style import match_fda, match_lab
from udas_fast.models import CycleGenerators, DomainBatchNorm2d, NetworkInput
from udas_fast.objectives import Batches, ObjectiveConfig, PrepareContext
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.cyclegan import CycleGAN, CycleGANConfig
from udas_fast.objectives.ddm import DistillationConfig, DomainMixingConfig
from udas_fast.objectives.mixing import MixingConfig, labelled_batches, translated_source
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.rectification import RectificationConfig
from udas_fast.objectives.self_training import ConsistencyConfig, SelfTrainingConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import get_recipe
from udas_fast.testing import assert_same_gradients, backward_passes, gradients, take_step

CLASSES, SIZE = 4, (32, 48)


def _up(logits: Tensor, size: tuple[int, int] = SIZE) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _segmentation(output: tuple[Tensor, Tensor], label: Tensor, auxiliary: float) -> Tensor:
    """CE of the primary head + ``auxiliary`` · CE of the other, mean over the pixels that have a label."""
    primary, second = (F.cross_entropy(_up(x), label.long(), ignore_index=255) for x in output)
    return primary + auxiliary * second if auxiliary else primary


def _image(images: Tensor) -> Tensor:
    return images.double() if images.is_floating_point() else images.double() / 255


@dataclass(frozen=True)
class Published:
    """The terms of a method that adapts, with its paper's weights: (primary, auxiliary)."""

    auxiliary: float
    adversarial: tuple[float, float] = (0.0, 0.0)
    space: str = "probability"
    squares: bool = False  # LSGAN
    ensemble: bool = False  # what stands for the source
    entropy: tuple[float, float] = (0.0, 0.0)
    penalty: bool = False  # FDA's
    kl: float = 0.0
    printed: bool = False  # UDAS's formula of L_kl; else MRNet's
    size: tuple[int, int] = SIZE  # that the discriminators see


METHODS = {
    "adaptsegnet": Published(0.1, (0.001, 0.0002)),
    "adaptsegnet_single": Published(0.0, (0.001, 0.0)),
    "advent": Published(0.1, (0.001, 0.0002), space="entropy"),
    "minent": Published(0.1, entropy=(0.001, 0.0002)),
    "fda": Published(0.0, entropy=(0.005, 0.0), penalty=True),
    # Their adversary's weights 0.001 and 0.0002 are those of 2 · (answer − source)².
    "seg_uncertainty": Published(0.5, (0.002, 0.0004), squares=True, ensemble=True, kl=0.1),
    "cycada": Published(0.0, (0.1, 0.0), space="score", size=(4, 6)),
    "uda": Published(0.1, (0.001, 0.0002), kl=1.0, printed=True),
    "udas": Published(0.1, (0.001, 0.0002), kl=1.0, printed=True),
    "udas_mrnet": Published(0.5, (0.001, 0.0002), kl=0.1),
}


def _seen(logits: Tensor, method: Published) -> Tensor:
    """What a discriminator looks at."""
    x = _up(logits, method.size)
    if method.space == "score":
        return x
    p = x.softmax(1)
    return p if method.space == "probability" else -p * p.log2() / 2  # log2 of 4 classes


def _distance(answers: Tensor | list[Tensor], domain: float, method: Published) -> Tensor:
    """Of a discriminator's answers to 0 (source) or 1 (target), the sum over its scales."""
    answers = [answers] if isinstance(answers, Tensor) else answers
    if method.squares:
        return sum((answer - domain).square().mean() for answer in answers)
    # −log of the probability that the sigmoid gives this domain.
    return sum(-F.logsigmoid(answer if domain else -answer).mean() for answer in answers)


def _target_terms(
    out: tuple[Tensor, Tensor], levels: list[nn.Module | None], method: Published, kl: bool
) -> list[Tensor]:
    p = [_up(x).softmax(1) for x in out]
    terms = [
        weight * _distance(discriminator(_seen(x, method)), 0.0, method)
        for weight, discriminator, x in zip(method.adversarial, levels, out, strict=True)
        if weight
    ]
    for weight, q in zip(method.entropy, p, strict=True):
        entropy = -(q * q.log()).sum(1) / torch.tensor(4.0).double().log()
        penalised = (entropy**2 + 0.001**2) ** 2 if method.penalty else entropy
        terms += [weight * penalised.mean()] if weight else []
    if kl and method.printed:  # −Σ F_a log F_p − Σ F_p log F_a (UDAS 3.3)
        terms.append(-method.kl * (p[1] * p[0].log() + p[0] * p[1].log()).sum(1).mean())
    elif kl:
        m = (_up(out[0]) + 0.5 * _up(out[1])).softmax(1).detach()
        terms += [method.kl * (m * (m / q).log()).sum(1).mean() for q in p]
    return terms


def _decide(network: nn.Module) -> None:
    """Weights at which answers differ: those of a fresh network are all about the same."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def _narrow(config: AdaptationConfig) -> AdaptationConfig:
    """``config`` with discriminators of few channels."""
    if config.adversary is None:
        return config
    return replace(config, adversary=replace(config.adversary, width=4))


def _labelled(name: str, batches: Batches, ctx: PrepareContext) -> list[Batch]:
    source = batches.source
    if name.startswith("udas"):  # tests of its mixing are in test_mixing.py
        return list(labelled_batches(source, batches.labelled, MixingConfig(), ctx).values())
    if name == "fda":
        return [replace(source, image=match_fda(source.image, batches.unlabelled.image, 0.01))]
    return [source]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("progress", [0.05, 0.7])  # before and after MRNet's heads begin to agree
def test_methods_that_adapt(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    name: str,
    progress: float,
) -> None:
    method = METHODS[name]
    _decide(tiny_net)
    if not name.startswith("udas"):
        batches = Batches(source=batches.source, unlabelled=batches.unlabelled)
    stage = get_recipe(name).stages[1 if name == "cycada" else 0]
    objective = _narrow(stage.objective).build(CLASSES).eval()  # without dropout
    levels = []
    if objective.adversary is not None:
        _decide(objective.adversary)
        levels = copy.deepcopy([objective.adversary.primary, objective.adversary.auxiliary])
        assert (objective.adversary.gate is not None) == (name == "cycada")
        if name == "cycada":
            objective.adversary.gate.accuracies.fill_(0.61)  # just open; test_adversary.py closes it
    model = copy.deepcopy(tiny_net).double()
    levels = [None if d is None else d.double() for d in levels] or [None, None]

    expected, outputs = [], []
    for batch in _labelled(name, batches, make_step()):
        outputs.append(model(_image(batch.image)))
        loss = _segmentation(outputs[-1], batch.label, method.auxiliary)
        expected.append(gradients(loss, {"model": model}))
    out = model(_image(batches.unlabelled.image))
    terms = _target_terms(out, levels, method, kl=method.kl > 0 and (method.printed or progress > 0.6))
    expected.append(gradients(sum(terms), {"model": model}))
    if any(levels):
        real = outputs[0]
        real = [real[0] + 0.5 * real[1]] * 2 if method.ensemble else real
        told = sum(
            0.5 * _distance(d(_seen(s.detach(), method)), 0.0, method)
            + 0.5 * _distance(d(_seen(t.detach(), method)), 1.0, method)
            for d, s, t in zip(levels, real, out, strict=True)
            if d is not None
        )
        named = zip(("primary", "auxiliary"), levels, strict=True)
        parts = {f"objective.adversary.{level}": d for level, d in named if d is not None}
        expected.append(gradients(told, parts))
    assert_same_gradients(backward_passes(objective, tiny_net, batches, make_step(progress)), expected)


def test_self_training(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    mixing = MixingConfig(augment="none")
    config = SelfTrainingConfig(
        pseudo_labels=PseudoLabelConfig(views=("identity",), threshold=0.0),
        pseudo_weight=0.7,
        auxiliary_weight=0.3,
        augment=False,
        consistency=ConsistencyConfig(weight=0.4, temperature=2.0),
        translate="lab",
        mixing=mixing,
        label_consistency_weight=0.0,  # its own test is below
    )
    objective = config.build(CLASSES)
    objective.on_round_start(tiny_net)
    with torch.no_grad():
        tiny_net.primary.bias.add_(torch.tensor([0.5, 0.0, -0.5, 0.0]))  # the student is not its teacher
    model, teacher = copy.deepcopy(tiny_net).double(), copy.deepcopy(objective.teacher).double().eval()
    target, labelled = _image(batches.unlabelled.image), batches.labelled
    with torch.no_grad():
        said = _up(teacher(target)[0])
    out = model(target)
    m = (said / 2).softmax(1)
    kl = (m * (m.log() - (_up(out[0]) / 2).log_softmax(1))).sum(1).mean()
    losses = [0.7 * _segmentation(out, said.argmax(1), 0.3) + 0.4 * kl]
    source = translated_source(batches, "lab", 0.01)
    for batch in (*labelled_batches(source, labelled, mixing, make_step()).values(), labelled):
        losses.append(_segmentation(model(_image(batch.image)), batch.label, 0.3))
    expected = [gradients(loss, {"model": model}) for loss in losses]
    assert_same_gradients(backward_passes(objective, tiny_net, batches, make_step()), expected)


def test_students_pseudo_labelling_of_labelled_images_agrees_with_the_ground_truth(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    """UDAS 3.5: KL(y ‖ maximum confidence map of K views), of source and labelled target images, is added."""
    config = SelfTrainingConfig(consistency=None, label_consistency_weight=0.3, augment=False)
    objective = config.build(CLASSES)
    objective.on_round_start(tiny_net)
    _decide(tiny_net)
    model = copy.deepcopy(tiny_net).double()
    context = make_step()
    again = make_step()
    expected = []
    target = [again.augment(batches.unlabelled.image, kind) for kind in config.pseudo_labels.views]
    for batch in (batches.source, batches.labelled):
        views = [again.augment(batch.image, kind) for kind in config.pseudo_labels.views]
        p = torch.stack([_up(model(_image(view))[0]).log_softmax(1) for view in views])
        surest = p.amax(2).argmax(0)  # [N, H, W]
        winner = p.gather(0, surest[None, :, None].expand(1, -1, CLASSES, -1, -1))[0]
        loss = F.nll_loss(winner, batch.label.long(), ignore_index=255)
        expected.append(gradients(0.3 * loss, {"model": model}))
        assert len(surest.unique()) > 1
    assert len(target) == 3
    passes = backward_passes(objective, tiny_net, batches, context)
    # After the pseudo-labels and the source, before the target's own: a pass for each view.
    assert len(passes) == 2 + 6 + 1
    sums = [{name: sum(each[name] for each in passes[i : i + 3]) for name in passes[i]} for i in (2, 5)]
    assert_same_gradients(sums, expected)


def test_rectification(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = get_recipe("seg_uncertainty").stages[1].objective.build(CLASSES)
    objective.on_round_start(tiny_net)
    labelling = objective.labelling
    views = labelling.views([batches.unlabelled.image], make_step().normalize)
    label = labelling.label(*views, SIZE, labelling.thresholds()).label.long()
    model = copy.deepcopy(tiny_net).double()
    primary, auxiliary = map(_up, model(_image(batches.unlabelled.image)))

    def rectified(p: Tensor, q: Tensor) -> Tensor:
        var = (q.softmax(1) * (q.log_softmax(1) - p.log_softmax(1))).sum(1)
        return (F.cross_entropy(p, label, reduction="none") * (-var).exp()).mean() + var.mean()

    loss = rectified(primary, auxiliary) + 0.5 * rectified(auxiliary, primary)
    expected = [gradients(loss, {"model": model})]
    assert_same_gradients(backward_passes(objective, tiny_net, batches, make_step()), expected)


def test_mrnets_pseudo_labels_without_rectification(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = get_recipe("mrnet").stages[1].objective.build(CLASSES)
    objective.on_round_start(tiny_net)
    _decide(objective.teacher)
    teacher = copy.deepcopy(objective.teacher).double().eval()
    model = copy.deepcopy(tiny_net).double()
    x = _image(batches.unlabelled.image)
    larger = _up(x, (40, 60))
    p = torch.zeros(2, CLASSES, *SIZE).double()
    with torch.no_grad():
        for view in (x, larger):  # scales 1 and 1.25, and their mirror images
            for mirrored in (False, True):
                out = teacher(view.flip(-1) if mirrored else view)
                each = _up(out[0] + 0.5 * out[1]).softmax(1)
                p += each.flip(-1) if mirrored else each
    loss = _segmentation(model(x), p.argmax(1), 0.5)
    only_target = Batches(unlabelled=batches.unlabelled)
    expected = [gradients(loss, {"model": model})]
    assert_same_gradients(backward_passes(objective, tiny_net, only_target, make_step()), expected)


@pytest.mark.parametrize("domain", ["source", "labelled"])
def test_baselines(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext], domain: str
) -> None:
    objective = SupervisedConfig(domain=domain).build(CLASSES)
    model = copy.deepcopy(tiny_net).double()
    batch = batches.get(domain)
    loss = _segmentation(model(_image(batch.image)), batch.label, 0.1)
    expected = [gradients(loss, {"model": model})]
    assert_same_gradients(backward_passes(objective, tiny_net, batches, make_step()), expected)


def test_joint_training_adds_both_domains(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = SupervisedConfig(domain="both").build(CLASSES)
    model = copy.deepcopy(tiny_net).double()
    expected = [
        gradients(_segmentation(model(_image(batch.image)), batch.label, 0.1), {"model": model})
        for batch in (batches.source, batches.labelled)
    ]
    assert_same_gradients(backward_passes(objective, tiny_net, batches, make_step()), expected)


@pytest.mark.parametrize("level", ["region", "sample"])
def test_ddm_teachers_see_the_source_in_the_targets_colours(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext], level: str
) -> None:
    config = DomainMixingConfig(level=level)  # the recipe's, as test_recipes.py has it
    objective = config.build(CLASSES)
    source, target = batches.source, batches.labelled
    lab = match_lab(source.image, batches.unlabelled.image)
    take_step(objective, tiny_net, batches, make_step())
    seen = [(255 * image).round().to(torch.uint8) for image in tiny_net.inputs]
    if level == "sample":
        assert torch.equal(seen[0], lab)
        assert torch.equal(seen[1], target.image)
        return
    (mixed,) = seen
    from_source, from_target = ((mixed == image).all(1) for image in (lab, target.image))
    assert (from_source | from_target).all()
    for inside in from_target & ~from_source:  # the target is what is pasted: all of it in one rectangle
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert inside.sum() > 0.99 * box  # a pixel of both images may be the same


class Older(nn.Module):
    """A pool that gives one image of an earlier step for every new one."""

    def forward(self, images: Tensor, draws: Sequence[Sequence[float]]) -> Tensor:
        return torch.linspace(-1, 1, images.numel()).view(images.shape)


@pytest.mark.parametrize("semantic", [False, True])
def test_cyclegan(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext], semantic: bool
) -> None:
    torch.manual_seed(0)
    config = CycleGANConfig(width=4, blocks=1, discriminator_width=4, semantic=300.0)
    objective = CycleGAN(config, copy.deepcopy(tiny_net) if semantic else None)
    objective.pools = nn.ModuleDict({domain: Older() for domain in objective.pools})
    networks, tiny_net = CycleGenerators(4, 1), tiny_net.double().eval()
    reference, discriminators = copy.deepcopy((networks, objective.discriminators))
    reference, discriminators = reference.double(), discriminators.double()
    to = {"source": reference.to_source, "target": reference.to_target}
    real = {"source": batches.source.image, "target": batches.unlabelled.image}
    real = {domain: image.double() / 127.5 - 1 for domain, image in real.items()}
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def segmented(images: Tensor) -> Tensor:
        return _up(tiny_net(((images + 1) / 2 - mean) / std)[0])

    expected = []
    for here, there in (("source", "target"), ("target", "source")):
        fake = to[there](real[here]).double()  # tanh's result is float32 by design
        gan = (discriminators[there](fake) - 1).square().mean()
        cycle = (to[here](fake) - real[here]).abs().mean()
        identity = (to[there](real[there]) - real[there]).abs().mean()
        loss = gan + 10 * cycle + 5 * identity
        if semantic:  # CyCADA: what a network of the source saw in the image, it is to see in its translation
            loss = loss + 300 * F.cross_entropy(segmented(fake), segmented(real[here]).argmax(1))
        expected.append(gradients(loss, {"model": reference}))
    for domain, discriminator in discriminators.items():
        old = Older()(real[domain], []).double()
        loss = (discriminator(real[domain]) - 1).square().mean() / 2 + discriminator(old).square().mean() / 2
        expected.append(gradients(loss, {f"objective.discriminators.{domain}": discriminator}))
    context = replace(make_step(), input=NetworkInput())
    assert_same_gradients(backward_passes(objective, networks, batches, context), expected)


@pytest.mark.parametrize(
    ("config", "domains"),
    [
        (SupervisedConfig(), "t"),
        (SupervisedConfig(domain="labelled"), "t"),
        (SupervisedConfig(domain="both"), "st"),
        (_narrow(get_recipe("udas").stages[0].objective), "st"),  # the mixed batch replaces the source
        (_narrow(get_recipe("udas_tuned").stages[0].objective), "sst"),  # source, mixed
        # Pseudo-labels, the mixed batch, three views of each domain's labelled images twice, labelled target images.
        (get_recipe("udas").stages[1].objective, "tsssssssttttttt"),
        (get_recipe("udas_tuned").stages[1].objective, "tsst"),
        (RectificationConfig(), "t"),
        (DomainMixingConfig(level="region"), "t"),
        (DomainMixingConfig(level="sample"), "st"),
        (DistillationConfig(), "tt"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_each_forward_has_its_domains_statistics(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    config: ObjectiveConfig,
    domains: str,
) -> None:
    # Evaluation takes the target's: where all images of a method are of one kind, these learn from it.
    tiny_net.norm = DomainBatchNorm2d(8)
    objective = config.build(CLASSES)
    objective.networks = {name: copy.deepcopy(tiny_net) for name in config.requirements.networks}
    objective.on_round_start(tiny_net)
    found: list[str] = []
    tiny_net.norm.register_forward_pre_hook(lambda norm, _: found.append(norm.domain[0]))
    tiny_net.norm.domain = "neither"  # each step says so itself
    take_step(objective, tiny_net, batches, make_step())
    assert "".join(found) == domains
