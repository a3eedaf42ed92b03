"""Model card of a finished run: README.md with the front matter that Hugging Face's hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from udas_fast.atomic import atomic_write
from udas_fast.errors import bad
from udas_fast.evaluation import aligned_table
from udas_fast.inference import MODEL_FILE
from udas_fast.tools.report.markup import percent
from udas_fast.tools.report.read import RunRecord, read_run

CARD = "README.md"


def write_card(run_dir: Path) -> Path:
    """Write ``README.md`` into the folder of a finished run and return its path.

    It has the scores and their protocol, the classes, the names of the data, the recipe, and the lines that load the
    model; no path of this machine.

    Raises:
        InputError: no run, one that is not finished or has a README.md, or a damaged file.
    """
    run, path = read_run(run_dir), run_dir / CARD
    if not run.finished:
        raise bad(f"run {run_dir}", f"no {MODEL_FILE}, as it is not finished", "a finished run")
    if path.exists():
        raise bad(str(path), "a file that may be your own", "none: move it away first")
    atomic_write(_text(run_dir.resolve().name, run), path)
    return path


def _text(name: str, run: RunRecord) -> str:
    front = yaml.safe_dump(_front_matter(name, run), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {name}", _description(run), *_scores(run), _use(run)]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, run: RunRecord) -> dict[str, Any]:
    matter: dict[str, Any] = {
        "library_name": "udas_fast",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "domain-adaptation", run.recipe.name],
        "metrics": ["mean_iou"],
    }
    if run.final is not None:
        protocol = run.final.protocol
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": protocol.dataset, "type": protocol.dataset, "split": protocol.split},
            "metrics": [{"type": "mean_iou", "value": round(run.final.miou, 4)}],
        }
        matter["model-index"] = [{"name": name, "results": [result]}]
    return matter


def _description(run: RunRecord) -> str:
    text = f"Semantic segmentation, trained for {run.recipe.steps:,} steps by the recipe `{run.recipe.name}`"
    if run.config.data is not None:
        sources = " + ".join(map(_named, run.config.data.sources)) or "none"
        text += f" on {sources} (source) and {_named(run.config.data.target)} (target)"
    if run.config.num_labels is not None:
        text += f", with {run.config.num_labels} labelled target images"
    return f"{text}, seed {run.config.seed}. `run.yaml` has every number."


def _named(dataset: str | None) -> str:
    """Return a dataset without the folders it is in on this machine."""
    if dataset is None:
        return "none"
    kind, _, root = dataset.partition(":")
    return f"{kind}:{Path(root).name}"


def _scores(run: RunRecord) -> list[str]:
    if run.final is None:
        return ["The model was not scored."]
    final = run.final
    rows = [["IoU, %", ""], *([name, percent(value)] for name, value in _ious(run))]
    rows += [["mIoU", percent(final.miou)], ["mean accuracy", percent(final.accuracy_mean)]]
    rows += [["pixel accuracy", percent(final.pixel_accuracy)]]
    return ["## Scores", aligned_table(rows), f"mIoU: {final.mean_note}. Protocol: {final.protocol}."]


def _ious(run: RunRecord) -> list[tuple[str, float]]:
    assert run.final is not None
    return list(zip(run.final.classes, run.final.iou.tolist(), strict=True))


def _use(run: RunRecord) -> str:
    own = ", model=my_network" if "model" in run.config.given else ""
    return f"""## Use

```python
import udas_fast as uf

model = uf.load("{MODEL_FILE}"{own})
label, confidence = model.predict("image.png")  # train ids and their softmax, [H, W]
```"""
