"""The pages about other software run: deploy.md, sweeps.md, other-loops.md.

Runtimes that are not installed are skipped. mmsegmentation, which has to be compiled, is a stand-in with the parts of a
decode head of version 1.2 that the page uses; so is Optuna where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import udas_fast.recipes
from udas_fast import TrainedModel, cli
from udas_fast.data import ClassSet
from udas_fast.models import ModelConfig, build_model
from udas_fast.recipes import get_recipe, override, small

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLASSES = ClassSet("own", ("road", "car", "sky"), ((10, 10, 10), (20, 20, 20), (30, 30, 30)))


def _blocks(page: str, language: str = "python") -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _write_data(root: Path) -> None:
    """A dataset of three classes, and a photo."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            label = rng.integers(0, 3, (8, 12), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            for kind, pixels in (
                ("images", np.stack([label * 80, 255 - label * 80, label], -1)),
                ("labels", label),
            ):
                path = root / f"{kind}/{split}/{i:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.txt").write_text("road\ncar\nsky\n")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("sim", "real"):
        _write_data(tmp_path / "DATA" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def _commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, block: str) -> list[str]:
    """Run the lines of a block; return what each printed."""
    printed = []
    for line in block.strip().splitlines():
        words = shlex.split(line.replace("512x1024", "32x48"))
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert not end.value.code, err
        printed.append(out)
    return printed


@pytest.mark.slow
def test_an_exported_model_gives_its_labels_in_every_runtime(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    config = ModelConfig(backbone="resnet18", width=4)
    trained = TrainedModel(build_model(config, 3).eval(), config, CLASSES, (32, 48))
    (workplace / "runs/first").mkdir(parents=True)
    trained.save(workplace / "runs/first/model.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    label, _ = trained.predict(pixels)

    export, evaluate = _blocks("deploy.md", "bash")
    _, scores, _ = _commands(capsys, monkeypatch, export)
    names: dict[str, Any] = {}
    for block in _blocks("deploy.md"):
        needed = re.search(r"^(?:import|from) (onnxruntime|openvino|torch|json)", block, re.MULTILINE)[1]
        if importlib.util.find_spec(needed) is None:
            continue
        exec(compile(block.replace("(1024, 512)", "(48, 32)"), "deploy.md", "exec"), names)
        found = np.asarray(names["labels"])
        assert found.dtype == np.uint8
        assert (found[0] == label).mean() > 0.99  # but for ties
    (int8,) = _commands(capsys, monkeypatch, evaluate)
    first, second = (float(re.search(r"mIoU +\|? *([\d.]+)", text)[1]) for text in (scores, int8))
    assert abs(first - second) < 10
    assert (workplace / "seg-int8.onnx").stat().st_size < (workplace / "seg.onnx").stat().st_size


class _Trial:
    """Stand-in for optuna.Trial: the middle of each range; gives up at the second report of the second trial."""

    def __init__(self, number: int) -> None:
        self.number, self.reports = number, []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return (low * high) ** 0.5 if log else (low + high) / 2

    def report(self, value: float, step: int) -> None:
        self.reports.append((step, value))

    def should_prune(self) -> bool:
        return self.number == 1 and len(self.reports) == 2


def _stand_in_for_optuna() -> ModuleType:
    class TrialPruned(Exception):
        pass

    class Study:
        def optimize(self, objective: Callable[[_Trial], float], n_trials: int) -> None:
            self.trials = []
            for number in range(n_trials):
                trial = _Trial(number)
                try:
                    trial.value = objective(trial)
                except TrialPruned:
                    trial.value = None
                self.trials.append(trial)

        @property
        def best_params(self) -> dict[str, float]:
            return {}

    module = ModuleType("optuna")
    module.TrialPruned = TrialPruned
    module.create_study = lambda **_: Study()
    module.pruners = SimpleNamespace(MedianPruner=lambda **_: None)
    return module


@pytest.mark.slow
def test_a_sweep_reports_every_score_and_ends_runs_early(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(name: str) -> object:
        return override(small(get_recipe(name), size=(32, 48), steps=6, batch_size=1), ["model.width=4"])

    monkeypatch.setitem(sys.modules, "optuna", _stand_in_for_optuna())
    monkeypatch.setattr(udas_fast.recipes, "get_recipe", tiny)
    (block,) = _blocks("sweeps.md")
    block = block.replace("num_labels=100", 'num_labels=2, engine="torch"').replace("=1000", "=2")
    names: dict[str, Any] = {}
    exec(compile(block.replace("n_trials=50", "n_trials=2"), "sweeps.md", "exec"), names)
    whole, pruned = names["study"].trials
    scores = [
        (line["step"], line["miou"])
        for line in map(json.loads, (workplace / "runs/sweep/0/scores.jsonl").read_text().splitlines())
    ]
    assert [step for step, _ in whole.reports] == [step for step, _ in scores]
    assert {2, 4, 6} <= {step for step, _ in scores}
    assert [miou for _, miou in whole.reports] == pytest.approx([miou for _, miou in scores])
    assert whole.value == pytest.approx(scores[-1][1])
    assert pruned.value is None
    assert len(pruned.reports) == 2
    assert not (workplace / "runs/sweep/1/model.safetensors").exists()


class _Head(nn.Module):
    """The parts of mmsegmentation's BaseDecodeHead that matter here, and its own loss: of upsampled logits."""

    def __init__(self) -> None:
        super().__init__()
        self.ignore_index, self.align_corners = 255, False
        self.loss_decode = SimpleNamespace(loss_name="loss_ce", loss_weight=0.4)

    def _stack_batch_gt(self, samples: list[SimpleNamespace]) -> Tensor:
        return torch.stack([sample.gt_sem_seg.data for sample in samples])

    def loss_by_feat(
        self, seg_logits: Tensor, batch_data_samples: list[SimpleNamespace]
    ) -> dict[str, Tensor]:
        label = self._stack_batch_gt(batch_data_samples)
        large = F.interpolate(seg_logits, label.shape[2:], mode="bilinear", align_corners=self.align_corners)
        loss = F.cross_entropy(large, label.squeeze(1), ignore_index=self.ignore_index)
        return {self.loss_decode.loss_name: self.loss_decode.loss_weight * loss}


def _files(page: str) -> dict[str, str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL))


def test_heads_of_mmsegmentation_give_the_same_loss_and_gradient(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = []

    def register_module() -> Callable[[type], type]:
        return lambda cls: registered.append(cls) or cls

    modules = {
        "mmseg": {},
        "mmseg.models": {},
        "mmseg.models.decode_heads": {"FCNHead": type("FCNHead", (_Head,), {}), "SegformerHead": _Head},
        "mmseg.registry": {"MODELS": SimpleNamespace(register_module=register_module)},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(_files("other-loops.md")["small_logits.py"], "small_logits.py", "exec"), {})
    assert [cls.__name__ for cls in registered] == ["SmallSegformerHead", "SmallFCNHead"]
    label = torch.randint(0, 5, (2, 1, 24, 40))
    label[0, 0, :5] = 255
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=one)) for one in label]
    logits = torch.randn(2, 5, 6, 10, dtype=torch.float64)
    expected, own = logits.clone().requires_grad_(), logits.float().requires_grad_()
    _Head().loss_by_feat(expected, samples)["loss_ce"].backward()
    for head in registered:
        own.grad = None
        head().loss_by_feat(own, samples)["loss_ce"].backward()
        torch.testing.assert_close(own.grad.double(), expected.grad, rtol=1e-4, atol=1e-8)


class _Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        label = torch.randint(0, 19, (64, 96), generator=generator)
        label[:8] = 255
        return {"pixel_values": torch.randn(3, 64, 96, generator=generator), "labels": label}


@pytest.mark.slow
def test_a_trainer_of_transformers_gives_the_models_own_loss(workplace: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names: dict[str, Any] = {}
    exec(compile(_files("other-loops.md")["small_trainer.py"], "small_trainer.py", "exec"), names)
    model = transformers.SegformerForSemanticSegmentation(_tiny_segformer(transformers, num_labels=19)).eval()
    batch = torch.utils.data.default_collate([_Pairs()[i] for i in range(2)])
    own = model(**batch)
    loss, outputs = names["SmallLogitsTrainer"].compute_loss(None, model, dict(batch), return_outputs=True)
    torch.testing.assert_close(loss, own.loss, rtol=1e-5, atol=1e-6)
    large = F.interpolate(outputs.logits, (64, 96), mode="bilinear")
    seen = batch["labels"] != 255
    truth, found = batch["labels"][seen], large.argmax(1)[seen]
    iou = [
        ((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum()
        for c in range(19)
        if ((truth == c) | (found == c)).any()
    ]
    matrices = [
        names["confusion"](outputs.logits[i : i + 1], batch["labels"][i : i + 1]).numpy() for i in range(2)
    ]
    scores = names["miou"](SimpleNamespace(predictions=np.concatenate(matrices)))
    assert scores["miou"] == pytest.approx(torch.stack(iou).mean().item(), abs=1e-3)


def _tiny_segformer(transformers: ModuleType, num_labels: int) -> object:
    sizes = {"hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 8, "depths": [1, 1, 1, 1]}
    return transformers.SegformerConfig(num_labels=num_labels, num_attention_heads=[1, 1, 1, 1], **sizes)


def test_the_trainer_of_the_page_trains_and_evaluates(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    (workplace / "small_trainer.py").write_text(_files("other-loops.md")["small_trainer.py"])
    block = _blocks("other-loops.md")[-1].replace(
        "max_steps=1000", 'max_steps=2, report_to="none", use_cpu=True'
    )
    tiny = _tiny_segformer(transformers, num_labels=19)
    monkeypatch.setattr(transformers, "SegformerConfig", lambda **_: tiny)
    exec(compile(block, "other-loops.md", "exec"), {"train": _Pairs(), "val": _Pairs()})
    assert "'eval_miou'" in capsys.readouterr().out
    sys.modules.pop("small_trainer")
