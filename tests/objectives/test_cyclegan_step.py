"""CycleGAN's terms by hand, who learns from which, and the pool of older images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models import CycleGenerators, NetworkInput, normalize, to_output
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.adversary import least_squares
from udas_fast.objectives.cyclegan import CycleGAN, CycleGANConfig, ImagePool
from udas_fast.testing import take_step

TINY = {"width": 4, "blocks": 1, "discriminator_width": 4}


@pytest.fixture
def networks() -> CycleGenerators:
    torch.manual_seed(0)
    return CycleGenerators(4, 1)


def test_the_defaults_are_the_published_numbers() -> None:
    config = CycleGANConfig()
    assert (config.width, config.blocks, config.discriminator_width) == (64, 9, 64)
    assert (config.cycle, config.identity, config.pool) == (10, 5, 50)


def test_least_squares_by_hand() -> None:
    answer = torch.tensor([[0.5, 2.0], [1.0, -1.0]])
    assert least_squares(answer, 1.0) == pytest.approx((0.25 + 1 + 0 + 4) / 4)
    assert least_squares(answer, 0.0) == pytest.approx((0.25 + 4 + 1 + 1) / 4)
    assert least_squares(answer.half(), 0.0).dtype == torch.float32


def test_every_term_equals_its_definition(
    networks: CycleGenerators, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    torch.manual_seed(1)
    objective = CycleGANConfig(**TINY).build(4)
    s, t = (batch.image.double() / 127.5 - 1 for batch in (batches.source, batches.unlabelled))
    losses = take_step(objective, networks, batches, make_step())
    networks, discriminators = networks.double(), objective.discriminators.double()
    with torch.no_grad():
        # tanh's result is float32 by design: the reference is double up to there.
        st, ts = networks.to_target(s).double(), networks.to_source(t).double()
        dis_s, dis_t = discriminators["source"], discriminators["target"]
        want = {
            "gan_target": ((dis_t(st) - 1) ** 2).mean(),
            "gan_source": ((dis_s(ts) - 1) ** 2).mean(),
            "cycle_source": (networks.to_source(st) - s).abs().mean(),
            "cycle_target": (networks.to_target(ts) - t).abs().mean(),
            "identity_target": (networks.to_target(t) - t).abs().mean(),
            "identity_source": (networks.to_source(s) - s).abs().mean(),
            "dis_source": ((dis_s(s) - 1) ** 2).mean() / 2 + (dis_s(ts) ** 2).mean() / 2,
            "dis_target": ((dis_t(t) - 1) ** 2).mean() / 2 + (dis_t(st) ** 2).mean() / 2,
        }
    assert losses.keys() == want.keys()
    for name, value in want.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name  # float32 against double


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_gradients_go_where_they_should(
    networks: CycleGenerators, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    torch.manual_seed(1)
    config = CycleGANConfig(**TINY)
    objective = config.build(4)
    calls: list[tuple[set[str], set[str]]] = []

    def backward(loss: Tensor) -> None:
        networks.zero_grad(set_to_none=True)
        objective.zero_grad(set_to_none=True)
        loss.backward()
        calls.append((set(_gradients(networks)), {n.split(".")[1] for n in _gradients(objective)}))

    step = make_step()
    take_step(objective, networks, batches, replace(step, backward=backward))
    everything = {name for name, _ in networks.named_parameters()}
    assert calls == [(everything, set()), (everything, set()), (set(), {"source"}), (set(), {"target"})]
    assert {id(p) for p in objective.discriminator_parameters()} == {
        id(p) for p in objective.discriminators.parameters()
    }


def test_the_weights_are_those_of_the_terms(
    networks: CycleGenerators, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    torch.manual_seed(1)
    objective = CycleGANConfig(cycle=7.0, identity=3.0, **TINY).build(4)
    step, sums = make_step(), []

    def backward(loss: Tensor) -> None:
        sums.append(loss.item())
        loss.backward()

    out = take_step(objective, networks, batches, replace(step, backward=backward))
    for here, there, total in (("source", "target", sums[0]), ("target", "source", sums[1])):
        want = out[f"gan_{there}"] + 7 * out[f"cycle_{here}"] + 3 * out[f"identity_{there}"]
        assert total == pytest.approx(want.item(), rel=1e-6)
    assert sums[2:] == pytest.approx([out["dis_source"].item(), out["dis_target"].item()])


def test_semantic_consistency_is_the_cross_entropy_with_what_the_frozen_network_saw(
    networks: CycleGenerators, tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    torch.manual_seed(1)
    objective = CycleGAN(CycleGANConfig(**TINY), tiny_net)
    before = {k: v.clone() for k, v in tiny_net.state_dict().items()}
    plain = make_step()
    step = replace(plain, input=NetworkInput())
    losses = take_step(objective, networks, batches, step)
    assert not tiny_net.inputs  # never in training mode
    assert all(torch.equal(v, before[k]) for k, v in tiny_net.state_dict().items())
    assert all(p.grad is None for p in tiny_net.parameters())
    image = batches.source.image
    with torch.no_grad():
        seen = F.interpolate(
            to_output(tiny_net(normalize(image))).primary, image.shape[-2:], mode="bilinear"
        ).argmax(1)
        translated = (networks.to_target(image.float() / 127.5 - 1) + 1) / 2
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        logits = to_output(tiny_net((translated - mean) / std)).primary
        want = F.cross_entropy(F.interpolate(logits, image.shape[-2:], mode="bilinear"), seen)
    # A pixel whose two best classes tie to rounding may go the other way: far less than 1e-4 of the mean.
    assert losses["semantic_target"].item() == pytest.approx(want.item(), rel=1e-4)
    assert "semantic_source" in losses


def _numbered(first: int, n: int = 1) -> Tensor:
    return torch.arange(first, first + n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 2, 2)


def _draws(generator: torch.Generator, n: int = 1) -> list[tuple[float, float]]:
    return torch.rand(n, 2, generator=generator).tolist()


def test_a_full_pool_returns_half_old_images() -> None:
    pool, generator = ImagePool(10), torch.Generator().manual_seed(0)
    filling = [pool(_numbered(i), _draws(generator)) for i in range(10)]
    assert [x[0, 0, 0, 0].item() for x in filling] == list(range(10))
    n = 2000
    returned = torch.cat([pool(_numbered(10 + 2 * i, 2), _draws(generator, 2)) for i in range(n // 2)])[
        :, 0, 0, 0
    ]
    age = torch.arange(10, 10 + n) - returned
    old = (age > 0).float().mean().item()
    assert old == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)  # five standard errors
    # A stored image is taken out with probability 1/20 at each call: it waits for 20 images on average.
    assert age[age > 0].float().mean().item() == pytest.approx(20, rel=0.2)
    assert len(pool.images) == 10


def test_no_pool_returns_what_it_gets() -> None:
    pool, generator = ImagePool(0), torch.Generator().manual_seed(0)
    for i in range(5):
        assert torch.equal(pool(_numbered(i), _draws(generator)), _numbered(i))


def test_a_pool_goes_on_from_its_state() -> None:
    one, generator = ImagePool(4), torch.Generator().manual_seed(0)
    for i in range(9):
        one(_numbered(i), _draws(generator))
    other = ImagePool(4)
    other.load_state_dict(one.state_dict())
    state = generator.get_state()
    expected = [one(_numbered(20 + i), _draws(generator)) for i in range(9)]
    generator.set_state(state)
    assert all(torch.equal(other(_numbered(20 + i), _draws(generator)), x) for i, x in enumerate(expected))
