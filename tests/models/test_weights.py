"""Every kind of file that --weights may be given, and the report about it."""

import argparse
import datetime
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from udas_fast.errors import InputError
from udas_fast.models import DeepLabV2, DeepLabV3Plus, ResNet, load_weights, normalize
from udas_fast.models.weights import CAFFE_MEAN


def deeplab(seed: int, num_classes: int = 5, **kwargs) -> DeepLabV2:
    """Build a small network with no tensor at its initial value."""
    torch.manual_seed(seed)
    model = DeepLabV2(num_classes, **{"backbone": "resnet18", "width": 8, **kwargs})
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor + 0.1 * torch.rand_like(tensor))
    return model


def torchvision_state(model: DeepLabV2) -> dict[str, torch.Tensor]:
    extra = {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    return {**model.backbone.state_dict(), **extra}


def adaptsegnet_state(model: DeepLabV2) -> dict[str, torch.Tensor]:
    """Return the same tensors under AdaptSegNet's names."""
    names = {
        "backbone.": "",
        "auxiliary.branches": "layer5.conv2d_list",
        "primary.branches": "layer6.conv2d_list",
    }
    state = {}
    for key, value in model.state_dict().items():
        own, published = next(item for item in names.items() if key.startswith(item[0]))
        state[published + key.removeprefix(own)] = value
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture
def saved(tmp_path):
    def save(content) -> str:
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return path

    return save


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"step": 3, "model": s}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_our_own_checkpoint_loads_whole(saved, wrap, prefix):
    there, here = deeplab(1), deeplab(2)
    report = load_weights(here, saved(wrap({prefix + k: v for k, v in there.state_dict().items()})))
    assert same(there.state_dict(), here.state_dict())
    assert set(report.loaded) == set(here.state_dict())
    assert (report.missing, report.unexpected, report.ignored, report.mismatched) == ((), (), (), ())
    assert not report.caffe_input


def test_torchvision_state_dict_loads_the_backbone_and_leaves_the_heads(saved):
    there, here = deeplab(1), deeplab(2)
    heads_before = {k: v.clone() for k, v in here.state_dict().items() if not k.startswith("backbone.")}
    report = load_weights(here, saved(torchvision_state(there)))
    assert same(there.backbone.state_dict(), here.backbone.state_dict())
    assert same(heads_before, here.state_dict())
    assert report.ignored == ("fc.weight", "fc.bias")
    assert set(report.missing) == set(heads_before)
    assert (report.unexpected, report.mismatched) == ((), ())
    text = report.summary()
    assert "120 of 136 tensors loaded" in text
    assert "not in the file, unchanged: auxiliary.* (8), primary.* (8)" in text
    assert "classifier of another task, ignored: fc.* (2)" in text


def test_old_files_without_batch_counters_load_whole(saved):
    there, here = deeplab(1), deeplab(2)
    old = {k: v for k, v in there.state_dict().items() if not k.endswith("num_batches_tracked")}
    report = load_weights(here, saved(old))
    assert report.missing == ()
    assert same(old, here.state_dict())


def test_a_backbone_alone_loads_a_torchvision_state_dict(saved):
    there, here = deeplab(1), ResNet("resnet18", width=8)
    report = load_weights(here, saved(torchvision_state(there)))
    assert same(there.backbone.state_dict(), here.state_dict())
    assert not report.missing


def test_adaptsegnet_checkpoint_loads_both_heads_and_all_but_the_input_unchanged(saved):
    there, here = deeplab(1), deeplab(2)
    report = load_weights(here, saved(adaptsegnet_state(there)))
    converted = {"backbone.conv1.weight", "backbone.bn1.running_mean"}
    assert same({k: v for k, v in there.state_dict().items() if k not in converted}, here.state_dict())
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert report.caffe_input
    assert "BGR of 0 to 255" in report.summary()


def test_converted_first_layer_has_the_same_output_for_our_input(saved):
    there, here = deeplab(1), deeplab(2)
    there.backbone.conv1.weight.data /= 50
    load_weights(here, saved(adaptsegnet_state(there)))
    image = torch.randint(0, 256, (1, 3, 40, 48), dtype=torch.uint8)
    caffe = image.flip(1).float() - torch.tensor(CAFFE_MEAN[::-1]).view(1, 3, 1, 1)
    with torch.no_grad():
        old = there.eval().backbone.bn1(there.backbone.conv1(caffe))
        new = here.eval().backbone.bn1(here.backbone.conv1(normalize(image)))
    inside = (..., slice(2, -2), slice(2, -2))  # outputs without padding in their receptive field
    torch.testing.assert_close(new[inside], old[inside], rtol=1e-4, atol=1e-4)
    assert (new - old).abs().max() < 0.05 * old.std()


def test_single_level_adaptsegnet_head_is_the_primary(saved):
    there, here = deeplab(1), deeplab(2)
    state = adaptsegnet_state(there)
    single = {k.replace("layer6.", "layer5."): v for k, v in state.items() if not k.startswith("layer5.")}
    report = load_weights(here, saved(single))
    assert same(there.primary.state_dict(), here.primary.state_dict())
    assert report.missing == tuple(k for k in here.state_dict() if k.startswith("auxiliary."))


def test_adaptsegnets_initial_weights_load_without_their_head(saved):
    there, here = deeplab(1), deeplab(2)
    state = {f"Scale.{k}": v for k, v in adaptsegnet_state(there).items() if not k.startswith("layer5.")}
    state = {k.replace("layer6.", "layer5."): v for k, v in state.items()}
    report = load_weights(here, saved(state))
    assert torch.equal(there.backbone.layer4[0].conv1.weight, here.backbone.layer4[0].conv1.weight)
    assert not same(there.primary.state_dict(), here.primary.state_dict())
    assert len(report.ignored) == 8
    assert all(key.startswith("Scale.layer5.") for key in report.ignored)
    assert report.caffe_input


def test_unused_branches_of_an_adaptsegnet_checkpoint_are_reported(saved):
    report = load_weights(deeplab(2, aspp_branches=2), saved(adaptsegnet_state(deeplab(1))))
    assert not report.missing
    assert len(report.unexpected) == 8
    assert "not in the model: layer5.conv2d_list.2.* (2), layer5.conv2d_list.3.* (2)" in report.summary()


def test_an_ordinary_file_fills_both_domains_and_a_domain_file_gives_the_targets(saved):
    there, both = deeplab(1), deeplab(2, norm="domain")
    report = load_weights(both, saved(there.state_dict()))
    assert not report.missing
    assert torch.equal(both.backbone.bn1.source_running_mean, there.backbone.bn1.running_mean)
    plain = deeplab(3)
    both.backbone.bn1.source_running_mean += 1
    report = load_weights(plain, saved(both.state_dict()))
    assert torch.equal(plain.backbone.bn1.running_mean, there.backbone.bn1.running_mean)
    assert len(report.unexpected) == 40


def test_tensors_of_another_shape_are_listed_with_both(saved):
    there, here = deeplab(1), deeplab(2)
    state = there.state_dict()
    state["backbone.layer1.0.conv1.weight"] = torch.zeros(8, 8, 1, 1)
    before = here.backbone.layer1[0].conv1.weight.detach().clone()
    report = load_weights(here, saved(state))
    assert report.mismatched == (("backbone.layer1.0.conv1.weight", (8, 8, 1, 1), (8, 8, 3, 3)),)
    assert "backbone.layer1.0.conv1.weight is [8, 8, 1, 1], expected [8, 8, 3, 3]" in report.summary()
    assert torch.equal(here.backbone.layer1[0].conv1.weight, before)
    assert torch.equal(here.primary.branches[0].bias, there.primary.branches[0].bias)


def test_weights_of_another_architecture_are_refused(saved):
    there, here = deeplab(1, backbone="resnet18", width=8), deeplab(2, backbone="resnet50", width=8)
    before = {name: tensor.clone() for name, tensor in here.state_dict().items()}
    found = r"23 of 120 tensors \(backbone.layer1.0.conv1.weight is \[8, 8, 3, 3\], not \[8, 8, 1, 1\]"
    with pytest.raises(InputError, match=found):
        load_weights(here, saved(torchvision_state(there)))
    assert same(here.state_dict(), before)


def test_a_first_layer_of_another_shape_is_not_converted(saved):
    state = adaptsegnet_state(deeplab(1))
    state["conv1.weight"] = torch.zeros(8, 1, 7, 7)
    report = load_weights(deeplab(2), saved(state))
    assert report.mismatched == (("backbone.conv1.weight", (8, 1, 7, 7), (8, 3, 7, 7)),)
    assert not report.caffe_input


def test_a_deeper_networks_rest_is_missing_and_named_briefly(saved):
    there, here = deeplab(1, backbone="resnet50", width=4), deeplab(2, backbone="resnet101", width=4)
    report = load_weights(here, saved(torchvision_state(there)))
    assert len(report.missing) == 17 * 18 + 16
    assert "backbone.layer3.6.* (18)" in report.summary()
    assert "backbone.layer3.5" not in report.summary()


def test_half_precision_weights_load_into_float(saved):
    there, here = deeplab(1), deeplab(2)
    load_weights(here, saved({k: v.half() for k, v in adaptsegnet_state(there).items()}))
    torch.testing.assert_close(
        here.primary.branches[0].weight, there.primary.branches[0].weight, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("state", "key"),
    [
        (lambda m: m.state_dict(), "auxiliary.branches.0.weight"),
        (adaptsegnet_state, "layer5.conv2d_list.0.weight"),
    ],
)
def test_another_number_of_classes_is_an_error_that_names_key_and_numbers(saved, state, key):
    here = deeplab(2, num_classes=5)
    before = {k: v.clone() for k, v in here.state_dict().items()}
    with pytest.raises(InputError, match=rf"weights.pth: found 7 classes in {key}, expected 5 classes"):
        load_weights(here, saved(state(deeplab(1, num_classes=7))))
    assert same(before, here.state_dict())


def test_weights_of_another_width_do_not_fit_and_the_first_shape_is_shown(saved):
    with pytest.raises(InputError, match=r"conv1.weight is \[16, 3, 7, 7\], not \[8, 3, 7, 7\]"):
        load_weights(deeplab(2), saved(torchvision_state(deeplab(1, width=16))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"encoder.weight": torch.zeros(3)},
            "nothing that fits the model, expected weights of the same network",
        ),
        ({"epoch": 3}, "no tensors"),
        ([torch.zeros(3)], "found list"),
        (torch.zeros(3), "found Tensor"),
    ],
)
def test_files_without_fitting_weights_are_refused(saved, content, message):
    with pytest.raises(InputError, match=message):
        load_weights(deeplab(1), saved(content))


class Hostile:
    def __reduce__(self):
        return print, ("run by a checkpoint",)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04truncated", pickle.dumps(Hostile(), protocol=2)]
)
def test_unreadable_files_are_refused_and_never_run(tmp_path, capsys, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken.pth: found a file that torch cannot read safely"):
        load_weights(deeplab(1), path)
    assert "run by a checkpoint" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_refused(saved):
    path = saved(deeplab(1).state_dict())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot read safely"):
        load_weights(deeplab(1), path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pth: found no such file"):
        load_weights(deeplab(1), tmp_path / "nowhere.pth")
    with pytest.raises(InputError, match="no such file"):
        load_weights(deeplab(1), tmp_path)


def test_safetensors_by_their_name(tmp_path):
    path, other, model = tmp_path / "weights.safetensors", deeplab(1), deeplab(0)
    save_file(other.state_dict(), path)
    assert not load_weights(model, path).missing
    assert same(other.state_dict(), model.state_dict())
    path.write_bytes(b"no such thing")
    with pytest.raises(InputError, match=r"weights .*weights.safetensors: found unreadable data"):
        load_weights(model, path)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_names_of_wrappers_are_of_no_effect_on_either_side(saved, wrap):
    there, here = deeplab(1), deeplab(2)
    inner = deeplab(1)
    inner.backbone = wrap(inner.backbone)  # a wrapped part in the middle of the names
    files = [{k: v.clone() for k, v in m.state_dict().items()} for m in (wrap(there), inner)]
    for file in files:
        assert any("module." in name or "_orig_mod." in name for name in file)
        for model in (here, wrap(here), inner):
            load_weights(model, saved(deeplab(3).state_dict()))
            report = load_weights(model, saved(file))
            assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
            assert all(map(torch.equal, model.state_dict().values(), there.state_dict().values()))


def test_an_average_of_torch_and_a_module_of_that_name_load_too(saved):
    there, here = deeplab(1), deeplab(2)
    average = torch.optim.swa_utils.AveragedModel(there)  # "module." and "n_averaged"
    assert load_weights(here, saved(average.state_dict())).unexpected == ("n_averaged",)
    assert same(there.state_dict(), here.state_dict())

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.linear = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.add_module("weight", torch.nn.Linear(3, 3))

    one, two = Own(), Own()
    report = load_weights(two, saved(one.state_dict()))
    assert (report.missing, report.unexpected) == ((), ())
    assert same(one.state_dict(), two.state_dict())


def test_a_backbone_called_encoder_loads(saved):
    there, here = deeplab(1), deeplab(2)
    encoder = {f"module.encoder.{k}": v for k, v in torchvision_state(there).items()}
    report = load_weights(here, saved({"state_dict": {**encoder, "module.decoder.weight": torch.zeros(3)}}))
    assert same(there.backbone.state_dict(), here.backbone.state_dict())
    assert report.unexpected == ("decoder.weight",)
    assert report.ignored == ("encoder.fc.weight", "encoder.fc.bias")
    whole = {f"encoder.{k}": v for k, v in there.state_dict().items()}
    assert not load_weights(here, saved(whole)).missing
    assert same(there.state_dict(), here.state_dict())


@pytest.mark.parametrize("classes", [7, 5])
@pytest.mark.parametrize("kind", [DeepLabV2, DeepLabV3Plus])
def test_a_head_is_reset_and_the_rest_is_kept_whatever_the_classes(saved, kind, classes):
    torch.manual_seed(0)
    there, here = (kind(n, backbone="resnet18", width=8) for n in (classes, 5))
    before = {name: tensor.clone() for name, tensor in here.state_dict().items()}
    report = load_weights(here, saved(there.state_dict()), reset_head=True)
    reset = {name for name, _, _ in report.reset}
    assert reset == {n for n, p in here.named_parameters() if p.shape[0] == 5 and "backbone" not in n}
    assert len(reset) == (16 if kind is DeepLabV2 else 4)  # weights and biases of all branches, of both heads
    for name, tensor in here.state_dict().items():
        assert torch.equal(tensor, before[name] if name in reset else there.state_dict()[name]), name
    assert (report.missing, report.mismatched, report.unexpected) == ((), (), ())
    assert f"\n  head of {classes} classes left out, reset: auxiliary." in report.summary()
    if classes != 5:
        with pytest.raises(
            InputError, match=r"expected 5 classes; --reset-head \(reset_head=True\) loads all"
        ):
            load_weights(here, saved(there.state_dict()))


def test_the_head_of_a_users_network_is_what_has_other_classes(saved):
    def network(classes):
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, classes, 1))

    there, here = network(7), network(3)
    report = load_weights(here, saved(there.state_dict()), reset_head=True)
    assert [name for name, _, _ in report.reset] == ["1.weight", "1.bias"]
    assert torch.equal(here[0].weight, there[0].weight)
    with pytest.raises(
        InputError, match=r"reset_head: found Sequential without head_parameters\(\) and num_cl"
    ):
        load_weights(here, saved(network(3).state_dict()), reset_head=True)


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_safe_load_refuses_is_named_with_the_lines_that_convert_it(tmp_path, legacy):
    path, there, here = tmp_path / "old weights.pth", deeplab(1), deeplab(2)
    for content, held in (
        ({"state_dict": there.state_dict(), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"model": there.state_dict(), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (there, "udas_fast.models.deeplab.DeepLabV2"),
        ({"model": there, "args": argparse.Namespace(lr=1)}, "udas_fast.models.deeplab.DeepLabV2"),
        (OrderedDict(there.state_dict(), when=datetime.date(2020, 1, 1)), "datetime.date"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match=f"cannot read safely, as it holds {held}") as caught:
            load_weights(here, path)
        sentence, *lines = str(caught.value).splitlines()
        assert sentence.endswith("if you trust the file, these lines convert it:")
        assert len(lines) == 3
        exec("\n".join(line.strip() for line in lines), {})
        load_weights(here, deeplab_file(tmp_path / "reset.pth"))
        assert not load_weights(here, tmp_path / "old weights-safe.pth").missing
        assert same(there.state_dict(), here.state_dict())


def deeplab_file(path):
    torch.save(deeplab(3).state_dict(), path)
    return path
