"""What several processes find out together equals what one finds out alone, whether or not the parts divide."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from udas_fast import distributed
from udas_fast.data import CAMVID, Batch, UserLoader, open_dataset
from udas_fast.data.pseudo_labels import PseudoLabelFolder
from udas_fast.distributed import average_buffers, average_gradients, same_everywhere
from udas_fast.errors import InputError
from udas_fast.evaluation import evaluate_dataset
from udas_fast.models.norm import SyncBatchNorm2d
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.testing import make_context

IMAGES = 5  # of no process's number a multiple
CLASSES = len(CAMVID)


def same(value: object) -> None:
    """All processes have ``value``."""
    assert all(other == value for other in distributed.all_gather_object(value))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), SyncBatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))


def predictions(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    size = (16, 24)
    return rng.integers(0, CLASSES, size, dtype=np.uint8), rng.random(size, dtype=np.float32)


def score(root: Path) -> dict:
    """Each image once, also from a loader, whose batches do not divide either."""
    dataset = open_dataset(f"camvid:{root}", "train")
    batches = [Batch(b.image, b.label, b.ids) for b in all_batches(dataset)]
    own = evaluate_dataset(network(), UserLoader(batches, CAMVID), "val").to_dict()
    scores = evaluate_dataset(network(), dataset, "val", (32, 48)).to_dict()
    assert own["protocol"]["images"] == scores["protocol"]["images"] == IMAGES
    assert own["confusion_matrix"] == scores["confusion_matrix"]
    return scores


def all_batches(dataset: object) -> Iterator[Batch]:
    for index in range(IMAGES):
        sample = dataset[index]
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        yield Batch(image, torch.from_numpy(sample.label)[None], [sample.id])


def label(root: Path, folder: Path) -> dict[str, bytes]:
    """The files that a round's pseudo-labels leave; every image is labelled by one process."""
    dataset = open_dataset(f"camvid:{root}", "train", labelled=False)
    labels = PseudoLabelFolder(folder, dataset, "key")
    missing = labels.missing()
    assert sorted(i for part in distributed.all_gather_object(missing) for i in part) == list(range(IMAGES))
    for index in missing:
        labels.add(index, *predictions(index))
    # The mean confidence of each class: a threshold that all images decide.
    labels.finish(lambda h: (h * np.arange(64) / 64).sum(1) / h.sum(1).clip(1))
    assert labels.complete
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def gradients() -> list[torch.Tensor]:
    """Of a loss whose labels are ignored unevenly, through batch norm over four images; and the statistics."""
    model, ctx = network().train(), make_context(seed=3)
    share = 4 // distributed.get_world_size()
    image = ctx.draw(
        lambda n: torch.randint(256, (n, 3, 32, 48), dtype=torch.uint8, generator=ctx.generator), share
    )
    target = ctx.draw(
        lambda n: torch.randint(CLASSES, (n, 32, 48), dtype=torch.uint8, generator=ctx.generator), share
    )
    if distributed.is_main():
        target[0] = 255
    loss = segmentation_loss(ctx.forward(model, ctx.augment(image)), target, 0.0)
    ctx.backward(loss)
    average_gradients(list(model.parameters()))
    average_buffers(model)
    mean = distributed.all_reduce_mean(loss.detach().clone())
    return [
        mean,
        *(p.grad for p in model.parameters()),
        *(b for b in model.buffers() if b.is_floating_point()),
    ]


def parameters_that_some_lack() -> None:
    """A gradient that one process has counts as zero in the others; one that none has stays none."""
    both, one, none = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    both.grad = torch.full((3,), float(distributed.get_rank()))
    if distributed.get_rank() == 1:
        one.grad = torch.ones(3)
    average_gradients([both, one, none])
    assert both.grad.tolist() == [1.0] * 3  # of 0, 1, 2
    assert one.grad.tolist() == pytest.approx([1 / 3] * 3)
    assert none.grad is None


def one_start_for_all() -> None:
    torch.manual_seed(distributed.get_rank())
    model = nn.Linear(2, 2)
    same_everywhere(model)
    same(model.weight.tolist())
    # What is the same everywhere stays so to the bit, although a third of three times it may not be.
    buffer = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    holder = nn.Module()
    holder.register_buffer("buffer", buffer.clone())
    average_buffers(holder)
    assert torch.equal(holder.buffer, buffer)


def errors_are_everyones() -> None:
    def refuse() -> None:
        assert distributed.is_main()
        raise InputError("no such folder")

    with pytest.raises(InputError, match="no such folder"):
        distributed.on_main(refuse)
    assert distributed.all_reduce_any([distributed.get_rank() == 2, False]) == [True, False]
    with pytest.raises(InputError, match="batch: found 4 for 3 processes, expected a multiple of 3"):
        distributed.per_rank(4, "batch")


def share_work(root: Path, folder: Path) -> None:
    parameters_that_some_lack()
    one_start_for_all()
    errors_are_everyones()
    scores = score(root)
    same(scores)
    files = label(root, folder / "labels")
    if distributed.is_main():
        (folder / "scores.json").write_text(json.dumps(scores))
        assert "summary.json" in files


def share_step(folder: Path) -> None:
    found = gradients()
    same([value.tolist() for value in found])
    if distributed.is_main():
        torch.save(found, folder / "gradients.pt")


@pytest.mark.slow
def test_three_processes_score_and_label_every_image_once(
    camvid_folder: Callable[..., Path], tmp_path: Path, processes: Callable[..., None]
) -> None:
    root = camvid_folder("data", train=IMAGES, size=(32, 48))
    (tmp_path / "three").mkdir()
    processes(3, share_work, root, tmp_path / "three")
    assert json.loads((tmp_path / "three/scores.json").read_text()) == json.loads(json.dumps(score(root)))
    alone = label(root, tmp_path / "alone")
    assert {p.name: p.read_bytes() for p in sorted((tmp_path / "three/labels").iterdir())} == alone


@pytest.mark.slow
def test_gradients_and_statistics_are_those_of_the_whole_batch(
    tmp_path: Path, processes: Callable[..., None]
) -> None:
    processes(2, share_step, tmp_path)
    shared, alone = torch.load(tmp_path / "gradients.pt", weights_only=True), gradients()
    for a, b in zip(shared, alone, strict=True):
        # float32 sums in another order; the biases before batch norm have no gradient but rounding
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7
