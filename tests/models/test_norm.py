"""Frozen layers stay as loaded; domain layers keep one set of statistics per domain."""

import copy

import pytest
import torch
from torch import nn

from udas_fast.errors import InputError
from udas_fast.models import DeepLabV2, DomainBatchNorm2d, FrozenBatchNorm2d, keep_statistics, set_domain
from udas_fast.models import norm as norms
from udas_fast.models.backbones import resnet


def small(norm: str) -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(4, backbone="resnet18", width=8, norm=norm)


def statistics(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    names = (f".{prefix}running_mean", f".{prefix}running_var")
    return {k: v.clone() for k, v in model.state_dict().items() if k.endswith(names)}


def unchanged(before: dict[str, torch.Tensor], model: nn.Module) -> list[bool]:
    after = model.state_dict()
    return [torch.equal(value, after[key]) for key, value in before.items()]


def test_batch_norm_follows_its_batches():
    model = small("batch").train()
    before = statistics(model, "")
    model(torch.randn(2, 3, 32, 32))
    assert not any(unchanged(before, model))


def test_frozen_layers_ignore_training_mode_and_learn_nothing():
    model = small("frozen").train()
    layers = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(layers) == 20
    assert not any(layer.training for layer in layers)
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    in_training = model(x).primary
    assert all(unchanged(before, model))
    torch.testing.assert_close(in_training, model.eval()(x).primary, rtol=0, atol=0)


def test_folded_layers_give_the_same_output_and_keep_less(monkeypatch):
    model, image = small("frozen"), torch.randn(2, 3, 33, 47)
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            for values, mean in ((layer.running_mean, 0.0), (layer.bias, 0.0), (layer.weight, 1.0)):
                nn.init.normal_(values, mean, 0.2, generator=generator)
            nn.init.uniform_(layer.running_var, 0.5, 2.0, generator=generator)
    state = copy.deepcopy(model.state_dict())
    found, kept = [], []
    for fold in (True, False):
        if not fold:
            monkeypatch.setattr(resnet, "conv_norm", lambda conv, norm, x: norm(conv(x)))
            monkeypatch.setattr(norms, "conv_norm", lambda conv, norm, x: norm(conv(x)))
        model.zero_grad()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t
        ):
            primary, auxiliary = model(image)
        (primary.square().sum() + auxiliary.square().sum()).backward()
        found.append([primary, auxiliary, *(p.grad for p in model.parameters() if p.requires_grad)])
        kept.append(sum(sizes.values()))
    for folded, plain in zip(*found, strict=True):
        # The same sums in another order, through 20 layers of float32.
        assert (folded - plain).norm() < 1e-4 * plain.norm()
    parameters = sum(p.numel() for p in model.parameters())
    assert kept[0] < kept[1] - 0.3 * (kept[1] - parameters)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_source_batches_do_not_move_the_targets_statistics_and_vice_versa():
    model = small("domain").train()
    for domain, own, other in (("source", "source_", ""), ("target", "", "source_")):
        set_domain(model, domain)
        own_before, other_before = statistics(model, own), statistics(model, other)
        assert len(own_before) == 40
        model(torch.randn(2, 3, 32, 32))
        assert not any(unchanged(own_before, model))
        assert all(unchanged({k: v for k, v in other_before.items() if k not in own_before}, model))


def test_domain_layer_equals_two_ordinary_layers_with_one_affine():
    torch.manual_seed(0)
    layer, source, target = DomainBatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for norm in (layer, source, target):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.5)
    x_s, x_t = torch.randn(2, 3, 8, 8), 5 + 2 * torch.randn(2, 3, 8, 8)
    for _ in range(3):
        set_domain(layer, "source")
        torch.testing.assert_close(layer(x_s), source(x_s))
        set_domain(layer, "target")
        torch.testing.assert_close(layer(x_t), target(x_t))
    torch.testing.assert_close(layer.running_mean, target.running_mean)
    torch.testing.assert_close(layer.running_var, target.running_var)
    torch.testing.assert_close(layer.source_running_mean, source.running_mean)
    torch.testing.assert_close(layer.source_running_var, source.running_var)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("domain", ["source", "target"])
def test_evaluation_uses_the_targets_statistics_whatever_is_set(domain):
    layer, target = DomainBatchNorm2d(3), nn.BatchNorm2d(3)
    layer.running_mean.fill_(2.0)
    target.running_mean.fill_(2.0)
    layer.source_running_mean.fill_(-7.0)
    set_domain(layer, domain)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(layer.eval()(x), target.eval()(x))


def test_an_ordinary_state_dict_fills_both_domains():
    ordinary = small("batch").train()
    ordinary(torch.randn(2, 3, 32, 32))
    model = small("domain")
    model.load_state_dict(ordinary.state_dict())
    for prefix in ("", "source_"):
        got = statistics(model, prefix)
        for key, value in statistics(ordinary, "").items():
            head, name = key.rsplit(".", 1)
            assert torch.equal(got[f"{head}.{prefix}{name}"], value)


def test_a_domain_state_dict_loads_unchanged():
    model = small("domain").train()
    set_domain(model, "source")
    model(torch.randn(2, 3, 32, 32))
    other = small("domain")
    other.load_state_dict(model.state_dict())
    assert all(unchanged(model.state_dict(), other))


def test_set_domain_ignores_models_without_such_layers():
    set_domain(small("batch"), "source")
    with pytest.raises(InputError, match=r"domain: found 'targt'.*did you mean 'target'"):
        set_domain(small("batch"), "targt")


def test_synchronised_layers_are_ordinary_ones_in_one_process():
    sync, batch = small("sync").train(), small("batch").train()
    x = torch.randn(2, 3, 32, 32)
    for a, b in zip(sync(x), batch(x), strict=True):
        assert torch.equal(a, b)
    for name, value in batch.state_dict().items():
        assert torch.equal(value, sync.state_dict()[name])
    assert torch.equal(sync.eval()(x).primary, batch.eval()(x).primary)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, DomainBatchNorm2d, norms.SyncBatchNorm2d])
def test_statistics_are_kept_where_that_is_asked_for(kind: type[nn.Module]) -> None:
    norm, x = kind(3).train(), torch.randn(4, 3, 5, 5)
    kept = {k: v.clone() for k, v in norm.state_dict().items() if "running" in k}
    with keep_statistics(norm):
        inside = norm(x)
    assert all(torch.equal(norm.state_dict()[k], v) for k, v in kept.items())
    assert torch.equal(norm(x), inside)  # by the batch's own statistics
    assert any(not torch.equal(norm.state_dict()[k], v) for k, v in kept.items())
