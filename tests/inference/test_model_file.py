"""Model file: contents, loading, and errors of damaged or hostile files."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from udas_fast import TrainedModel
from udas_fast.data import CAMVID
from udas_fast.errors import InputError
from udas_fast.inference.model import KEY, _checksum
from udas_fast.models import MEAN, STD

Make = Callable[..., TrainedModel]


@pytest.mark.parametrize("norm", ["batch", "frozen", "domain"])
def test_a_loaded_model_is_the_saved_one(
    make_trained: Make, tmp_path: Path, image: np.ndarray, norm: str
) -> None:
    saved = make_trained(norm=norm)
    saved.model.to(memory_format=torch.channels_last)
    saved.save(tmp_path / "model.safetensors")
    loaded = TrainedModel.load(tmp_path)
    assert (loaded.config, loaded.classes, loaded.size) == (saved.config, CAMVID, (32, 48))
    assert loaded.protocol == saved.protocol
    for name, value in saved.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    trained = {n for n, p in saved.model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == trained
    loaded.model.to(memory_format=torch.channels_last)  # another layout rounds differently
    for one, other in zip(loaded.predict(image), saved.predict(image), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_header_is_complete_without_this_package(make_trained: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make_trained().save(path)
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["udas_fast"])
    assert content["classes"]["names"] == list(CAMVID.names)
    assert content["classes"]["palette"][0] == [128, 128, 128]
    assert content["normalisation"] == {"mean": list(MEAN), "std": list(STD)}
    assert content["size"] == [32, 48]
    assert content["config"]["backbone"] == "resnet18"
    assert content["protocol"]["dataset"] == "camvid"


def test_the_same_model_gives_the_same_bytes(make_trained: Make, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    make_trained().save(one)
    TrainedModel.load(one).save(two)
    assert one.read_bytes() == two.read_bytes()


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)
            self.two = self.one

    path, model = tmp_path / "x.safetensors", Tied()
    TrainedModel(model, None, CAMVID, (4, 4)).save(path)
    again = TrainedModel.load(path, model=Tied()).model
    assert torch.equal(again.two.weight, model.one.weight)


def test_a_state_that_the_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Conv2d):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    with pytest.raises(InputError, match="state '_extra_state' of Odd: found dict, expected dense tensors"):
        TrainedModel(Odd(3, 3, 1), None, CAMVID, (4, 4)).save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def _header(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    """Return a function that rewrites the JSON in a file's metadata, with the checksum that it then has."""

    def damage(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        content = json.loads(metadata[KEY])
        change(content)
        tensors = safetensors.torch.load(data)
        text = json.dumps({**content, "checksum": ""}, separators=(",", ":"), ensure_ascii=False)
        checksum = _checksum(text.encode(), tensors)
        return safetensors.torch.save(
            tensors, {KEY: text.replace('"checksum":""', f'"checksum":"{checksum}"')}
        )

    return damage


def _flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "unreadable data"),
        (lambda data: b"", "unreadable data"),
        (lambda data: b"\xff" * 64, "unreadable data"),
        (lambda data: struct.pack("<Q", 50) + b"[" * 50, "unreadable data"),
        (_flip, "damage .another checksum."),
        (_header(lambda c: c.pop("classes")), "damaged header .*classes"),
        (_header(lambda c: c.update(size=[0, 4])), "damaged header .*size"),
        (_header(lambda c: c.update(extra=1)), "damaged header .*extra"),
        (_header(lambda c: c["classes"].update(palette=[[300, 0, 0]] * 11)), "damaged header .*300"),
        (_header(lambda c: c["classes"].update(names=["road"])), "damaged header"),
        (_header(lambda c: c["classes"].update(names=[], palette=[])), "num_classes: found 0"),
        (_header(lambda c: c["config"].update(width=5)), "does not fit the network"),
        (_header(lambda c: c["config"].update(width=10**9)), "does not fit the network|damaged header"),
        (_header(lambda c: c["config"].update(width=10**30)), "damaged header"),
        (_header(lambda c: c["config"].update(backbone="/etc/passwd")), "damaged header"),
        (_header(lambda c: c["normalisation"].update(mean=[0, 0, 0])), "normalisation of"),
        (_header(lambda c: c.update(config=None)), "a network of your own; pass it as `model`"),
    ],
)
def test_damaged_and_hostile_files_are_one_sentence(
    make_trained: Make, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    make_trained().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=words) as caught:
        TrainedModel.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_from_before_a_key_of_the_header_is_whole(make_trained: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make_trained().save(path)
    path.write_bytes(_header(lambda c: c.pop("temperature"))(path.read_bytes()))
    assert TrainedModel.load(path).temperature == 1.0


def test_every_bit_of_a_file_counts(make_trained: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make_trained().save(path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    (length,) = struct.unpack("<Q", data[:8])
    ours = data.index(b"classes")  # of the header; before it are names, shapes and places of tensors
    places = [
        *rng.integers(0, ours, 40),
        *rng.integers(ours, 8 + length, 80),
        *rng.integers(0, len(data), 20),
    ]
    for place in map(int, places):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            TrainedModel.load(path)
        except InputError:
            continue
        assert bytes(changed[place : place + 1]) in b" \t\n\r", place  # JSON's white space


def test_the_last_lines_of_the_readmes_example(
    make_trained: Make, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"image": image}
    (tmp_path / "runs/udas").mkdir(parents=True)
    make_trained().save(tmp_path / "runs/udas/model.safetensors")
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks if "uf.load(" in block)
    lines = example[example.index("model = uf.load(") :].partition("\n\n")[0]
    exec("import udas_fast as uf\n" + lines, names)
    assert names["label"].shape == names["confidence"].shape == (40, 56)


def test_other_and_missing_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="found no 'udas_fast' in its header"):
        TrainedModel.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such file"):
        TrainedModel.load(tmp_path / "missing.safetensors")
    (tmp_path / "run.yaml").touch()
    with pytest.raises(InputError, match=r"no model.safetensors, as it is not finished"):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_users_network_loads_whether_it_was_wrapped_or_not(tmp_path: Path, wrap: Callable) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, len(CAMVID), 1))

    plain = network()
    for saved, here in ((wrap(plain), network()), (plain, wrap(network())), (wrap(plain), wrap(network()))):
        TrainedModel(saved, None, CAMVID, (32, 48)).save(tmp_path / "model.safetensors")
        TrainedModel.load(tmp_path, model=here)
        assert all(map(torch.equal, here.state_dict().values(), plain.state_dict().values()))
    encoder = nn.ModuleDict({"encoder": plain})
    TrainedModel(encoder, None, CAMVID, (32, 48)).save(tmp_path / "model.safetensors")
    assert TrainedModel.load(tmp_path, model=network()).classes == CAMVID
    with pytest.raises(InputError, match="does not fit the network"):
        TrainedModel.load(tmp_path, model=nn.Conv2d(3, 4, 3))
