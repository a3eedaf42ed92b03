"""A user's own network, loaders, optimiser and callbacks in the trainer, and what it says where they do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from udas_fast import Trainer
from udas_fast.data import UserLoader, open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.interrupt import Interrupted
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, override, small
from udas_fast.training.requirements import check_data

SIZE = (32, 48)
CLASSES = ("road", "car", "sky")


class UNet(nn.Module):
    """A user's network without an auxiliary head: two levels, logits at the image's size."""

    def __init__(self, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, 2, 1)
        self.up = nn.ConvTranspose2d(6, 6, 2, 2)
        self.head = nn.Conv2d(9, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.up(self.down(x).relu())], 1))


class WithLogits(UNet):
    """Returns an object as transformers do."""

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(x), hidden_states=None)


class WithDict(UNet):
    """Returns a dictionary as torchvision does."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = super().forward(x)
        return {"out": out, "aux": 0.5 * out}


class Pairs(Dataset):
    """A user's (image, label) pairs, augmented by all three global generators."""

    def __init__(self, length: int = 5) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = torch.full(SIZE, index % 3)
        label[:, :8] = 255
        image = torch.full((3, *SIZE), 40.0 * index) + 30 * torch.rand(3, *SIZE)
        if random.random() < 0.5:
            image, label = image.flip(-1), label.flip(-1)
        return (image + np.random.randint(20)).clamp(0, 255).to(torch.uint8), label  # noqa: NPY002


def loaders(length: int = 5, **options: object) -> Domains:
    def loader(name: str, shuffle: bool = True) -> UserLoader:
        return UserLoader(
            DataLoader(Pairs(length), 2, shuffle=shuffle, drop_last=True, **options), CLASSES, name
        )

    return Domains(
        source=loader("mine"), labelled=loader("few"), unlabelled=loader("theirs"), val=loader("val", False)
    )


def recipe(name: str = "no_adaptation", steps: int = 4, settings: tuple[str, ...] = ()) -> Recipe:
    return override(small(get_recipe(name), size=SIZE, steps=steps, batch_size=2), settings)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


NO_KL = ("stages.adaptation.objective.agreement=null",)


@pytest.mark.parametrize("build", [UNet, WithLogits, WithDict])
def test_whatever_a_network_returns_every_stage_of_udas_trains_it(build, tmp_path: Path) -> None:
    model = seeded(build)
    before = model.head.weight.detach().clone()
    trainer = Trainer(
        recipe("udas", 12, NO_KL), loaders(), model, run_dir=tmp_path / "run", device="cpu", log_every=1
    )
    assert "source mine (loader)" in trainer.describe()
    scores = trainer.fit()
    assert not torch.equal(model.head.weight, before)
    assert list(scores) == ["adaptation", "self_training.1", "self_training.2"]
    # All 4 images of the 2 batches, at the loader's own size, without the ignored columns.
    assert scores["adaptation"].matrix.sum() == 4 * 32 * 40
    assert scores["adaptation"].protocol.images == 4


def test_transformers_segformer_is_trained_unchanged(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=len(CLASSES),
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )
    model = seeded(lambda: transformers.SegformerForSemanticSegmentation(config))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(recipe("udas", 12, NO_KL), loaders(), model, run_dir=tmp_path / "run", device="cpu")
    scores = trainer.fit()
    assert scores["adaptation"].matrix.sum() == 4 * 32 * 40
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


class StopAfter(Callback):
    """Asks for the end of the run as Ctrl-C does, after ``steps``."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, record: dict) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted("enough")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_on_loaders_goes_on_to_the_same_bits(workers: int, tmp_path: Path) -> None:
    def options(run: str) -> dict:
        return {"run_dir": tmp_path / run, "device": "cpu", "log_every": 1, "checkpoint_every": 1}

    steps = 7  # epochs have two batches: the stop is in the middle of the third
    Trainer(recipe(steps=steps), loaders(num_workers=workers), seeded(UNet), **options("whole")).fit()
    first = Trainer(
        recipe(steps=steps),
        loaders(num_workers=workers),
        seeded(UNet),
        callbacks=[StopAfter(6)],
        **options("cut"),
    )
    with pytest.raises(Interrupted):
        first.fit()
    torch.rand(3), random.random()  # another process has other global states
    data = loaders(num_workers=workers)
    Trainer.resume(tmp_path / "cut", model=UNet(), data=data, device="cpu").fit()
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()
    a, b = (load_file(run / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_optimiser_of_the_users_own_takes_the_recipes_schedule(tmp_path: Path) -> None:
    made = []

    def make(model: nn.Module) -> torch.optim.Optimizer:
        groups = [{"params": model.head.parameters(), "lr": 1e-3}, {"params": model.down.parameters()}]
        made.append(torch.optim.RMSprop(groups, lr=1e-4))
        return made[-1]

    up = (model := seeded(UNet)).up.weight.detach().clone()
    plan = recipe(steps=4, settings=("stages.source.optimizer.warmup=0", "stages.source.optimizer.horizon=1"))
    Trainer(plan, loaders(), model, run_dir=tmp_path / "run", device="cpu", optimizer=make).fit()
    assert len(made) == 1
    assert torch.equal(model.up.weight, up)  # in no group
    # The last of 4 steps: (1 - 3/4)^0.9 of each group's own rate.
    rates = [group["lr"] for group in made[0].param_groups]
    assert rates == pytest.approx([1e-3 * 0.25**0.9, 1e-4 * 0.25**0.9])
    with pytest.raises(InputError, match=r"optimizer\(model\): found list, expected a torch.optim.Optimizer"):
        Trainer(
            plan, loaders(), UNet(), run_dir=tmp_path / "no", device="cpu", optimizer=lambda model: [model]
        ).fit()


class Listener(Callback):
    def __init__(self) -> None:
        self.heard: list[tuple] = []

    def on_run_begin(self, run_dir: Path, document: dict) -> None:
        assert document == yaml.safe_load((run_dir / "run.yaml").read_text())
        self.heard.append(("begin", run_dir))

    def on_step(self, record: dict) -> None:
        self.heard.append(("step", record["step"], record["seg"]))

    def on_phase_end(self, phase: str, step: int, scores: dict) -> None:
        self.heard.append((phase, step, scores))

    def on_run_end(self, run_dir: Path) -> None:
        assert (run_dir / "model.safetensors").is_file()
        self.heard.append(("end", run_dir))


def test_callbacks_hear_every_step_in_order_and_the_scores(tmp_path: Path) -> None:
    listener = Listener()
    trainer = Trainer(
        recipe(steps=3),
        loaders(),
        seeded(UNet),
        run_dir=tmp_path,
        device="cpu",
        log_every=2,
        callbacks=[listener],
    )
    scores = trainer.fit()
    assert listener.heard.pop(0) == ("begin", tmp_path)
    steps, phase, end = listener.heard[:3], listener.heard[3], listener.heard[4]
    assert [(kind, number) for kind, number, _ in steps] == [("step", 0), ("step", 1), ("step", 2)]
    assert all(loss > 0 for *_, loss in steps)
    assert phase == ("source", 3, {"source": scores["source"].miou})
    assert end == ("end", tmp_path)


def test_every_part_that_was_an_object_is_asked_for_again(tmp_path: Path) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    Trainer(recipe(), loaders(), UNet(), run_dir=tmp_path / "mine", device="cpu", optimizer=optimizer)
    with pytest.raises(InputError, match="its data and model and optimizer began as objects"):
        Trainer.resume(tmp_path / "mine", device="cpu")
    Trainer(recipe(settings=("model.width=4",)), loaders(), run_dir=tmp_path / "ours", device="cpu")
    with pytest.raises(InputError, match="found a model to go on with, expected none"):
        Trainer.resume(tmp_path / "ours", data=loaders(), model=UNet(), device="cpu")


class Other(nn.Module):
    def __init__(self, output: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.output = nn.Conv2d(3, 3, 1), output

    def forward(self, x: Tensor) -> object:
        return self.output(self.body(x))


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (lambda x: x[:, :2], "output of model Other: found 2 classes, expected the data's 3"),
        (lambda x: {"logits": x}, "model output: found dict with keys logits, expected a tensor"),
        (lambda x: x.view(-1, 7), r"model Other on an image \[1, 3, 32, 48\]: found shape '\[-1, 7\]'"),
        (
            lambda x: x.mean((2, 3)),
            r"model output: found torch.float32 \[1, 3\], expected floating-point logits",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_told_before_any_work(output, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        Trainer(recipe(), loaders(), Other(output), run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


IMAGE, LABEL = torch.zeros(2, 3, 4, 6, dtype=torch.uint8), torch.zeros(2, 4, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGE, LABEL),
        [IMAGE, LABEL.byte(), "size", "name"],  # AdaptSegNet's have four parts
        {"image": IMAGE, "label": LABEL},
        {"pixel_values": IMAGE, "labels": LABEL.int(), "id": ["a", "b"]},
        (IMAGE / 255.0, LABEL.float()),  # AdaptSegNet's labels are floating
        (IMAGE, LABEL.to(torch.uint16)),  # 16-bit PNGs
    ],
)
def test_the_forms_of_a_batch(batch: object) -> None:
    (found,) = UserLoader([batch], CLASSES).epoch()
    assert torch.equal(found.image, IMAGE)
    assert torch.equal(found.label, LABEL.byte())
    assert found.ids == (["a", "b"] if isinstance(batch, dict) and "id" in batch else found.ids)


def test_denormalize_undoes_a_normalisation() -> None:
    mean = torch.tensor([104.0, 116.7, 122.7]).view(3, 1, 1)  # AdaptSegNet's, BGR
    image = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = UserLoader(
        [(image.flip(1) - mean, LABEL)], CLASSES, denormalize=lambda x: (x + mean).flip(1).round().byte()
    )
    (batch,) = loader.epoch()
    assert torch.equal(batch.image, image)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ((IMAGE - 3.0, LABEL), r"images of mine, batch 0: found values from -3 to -3, expected \[0, 1\]"),
        ((IMAGE / 0.0, LABEL), r"images of mine, batch 0: found values from nan"),
        ((IMAGE[0], LABEL), r"images of mine, batch 0: found \[3, 4, 6\], expected \[N, 3, H, W\]|labels of"),
        ((IMAGE.int(), LABEL), "images of mine, batch 0: found torch.int32"),
        ((IMAGE, LABEL + 3), "labels of mine, batch 0: found id 3, expected 0 to 2, or 255"),
        ((IMAGE, LABEL - 100), "labels of mine, batch 0: found id -100"),
        ((IMAGE, LABEL + 0.5), "labels of mine, batch 0: found the number 0.5, expected whole train ids"),
        ((IMAGE, LABEL / 0.0), "labels of mine, batch 0: found the number nan"),
        ((IMAGE, LABEL > 0), "labels of mine, batch 0: found torch.bool"),
        ((IMAGE, LABEL[:, None]), r"labels of mine, batch 0: found torch.int64 \[2, 1, 4, 6\]"),
        ((IMAGE, LABEL[:1]), "labels of mine, batch 0: found 1, expected the 2 of its images"),
        ({"img": IMAGE}, "batch 0 of mine: found a dict with img, expected"),
        ("nonsense", "batch 0 of mine: found str, expected"),
    ],
)
def test_a_batch_that_is_none_is_named(batch: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(UserLoader([batch], CLASSES, "mine").epoch())


class Endless:
    """An iterable without a length, whose epochs have three batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(IMAGE + i, LABEL) for i in range(3)])


def _stream(loader: UserLoader, start: int = 0, count: int = 4) -> list[int]:
    inputs = recipe().input
    stream = Domains(source=loader).loaders({"source": inputs.source}, inputs, seed=0, phase="p")
    batches = stream["source"].batches(start)
    return [int(next(batches).image[0, 0, 0, 0]) for _ in range(count)]


def test_an_iterable_without_a_length_begins_again_and_resumes() -> None:
    loader = UserLoader(Endless(), CLASSES)
    assert _stream(loader) == [0, 1, 2, 0]
    assert _stream(loader, 4) == [1, 2, 0, 1]


def test_streams_that_end_are_told() -> None:
    with pytest.raises(
        InputError, match="found 0, expected at least one, of an iterable that can be iterated again"
    ):
        _stream(UserLoader(iter(Endless()), CLASSES))
    with pytest.raises(InputError, match="batch 0 of loader: found no label, expected labelled images"):
        _stream(UserLoader([IMAGE], CLASSES))


def test_what_cannot_be_is_refused_before_any_work(camvid_root: Path, tmp_path: Path) -> None:
    def start(plan: Recipe, data: Domains) -> None:
        Trainer(plan, data, UNet(), run_dir=tmp_path / "run", device="cpu")

    with pytest.raises(
        InputError, match="data 'source': found DataLoader, expected a SegmentationDataset, or"
    ):
        Domains(source=DataLoader(Pairs()))
    with pytest.raises(InputError, match="unlabelled images of stage self_training: found a UserLoader"):
        start(
            recipe("udas", 6, (*NO_KL, "stages.self_training.objective.pseudo_labels.labels=disk")), loaders()
        )
    with pytest.raises(InputError, match="input.rare_classes: found source images of a UserLoader"):
        start(recipe(settings=("input.rare_classes={}",)), loaders())
    with pytest.raises(InputError, match="unlabelled images of stage region_2: found a UserLoader"):
        check_data(recipe("ddm", 6, ("stages.region_2.objective.pseudo_labels.labels=disk",)), loaders())
    with pytest.raises(
        InputError, match="found 3 in source mine and 11 in val camvid, number 0 is 'road' and"
    ):
        start(recipe(), Domains(loaders().source, val=open_dataset(f"camvid:{camvid_root}", "val")))
    other = UserLoader([], ("road", "sky", "car"), "other")
    with pytest.raises(InputError, match="number 1 is 'car' and 'sky', expected the same classes in every"):
        Domains(loaders().source, val=other).classes()
    with pytest.raises(InputError, match="classes of mine: found the class 'a' twice"):
        UserLoader([], ("a", "b", "a"), "mine")
    assert not (tmp_path / "run").exists()


def test_an_edited_run_file_is_the_truth_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    options = {"device": "cpu", "log_every": 1, "checkpoint_every": 1}
    plan = recipe(steps=6)
    with pytest.raises(Interrupted):
        Trainer(plan, loaders(), UNet(), run_dir=run, callbacks=[StopAfter(3)], **options).fit()
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace("steps: 6", "steps: 9"))
    with pytest.raises(
        InputError, match=r"recipe.stages.0.steps in run.yaml: found 9, expected 6, as in the"
    ):
        Trainer.resume(run, model=UNet(), data=loaders(), device="cpu").fit()
    (run / "run.yaml").write_text(text.replace("momentum: 0.9", "momentum: 0.5"))
    Trainer.resume(run, model=UNet(), data=loaders(), device="cpu").fit()
    change = "run.yaml was edited since the checkpoint: recipe.stages.0.optimizer.momentum: 0.9 -> 0.5"
    assert change in capsys.readouterr().err


def test_the_second_of_two_trainers_in_one_folder_is_refused(tmp_path: Path) -> None:
    first = Trainer(recipe(steps=1), loaders(), UNet(), run_dir=tmp_path, device="cpu")
    Trainer(recipe(steps=2), loaders(), UNet(), run_dir=tmp_path, device="cpu")
    with pytest.raises(InputError, match=r"run.yaml: found another run than the one that was set up"):
        first.fit()


def test_a_checkpoint_of_another_network_is_told(tmp_path: Path) -> None:
    options = {"device": "cpu", "log_every": 1, "checkpoint_every": 1}
    with pytest.raises(Interrupted):
        Trainer(recipe(), loaders(), UNet(), run_dir=tmp_path, callbacks=[StopAfter(2)], **options).fit()
    with pytest.raises(InputError, match="checkpoint of source: found .*expected network, objective and"):
        Trainer.resume(tmp_path, model=Other(lambda x: x), data=loaders(), device="cpu").fit()
