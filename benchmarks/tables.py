"""Write the tables of README.md from the JSON files in results/: python benchmarks/tables.py

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`; nothing else is touched. --check only compares.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def load(name: str) -> dict[str, Any]:
    """One committed result."""
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def accuracy(task: str) -> str:
    """mIoU by row: mean ± standard deviation over the seeds, after the first stage and at the end."""
    document = load(task)
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in document["runs"]:
        rows.setdefault(run["name"], []).append(run)
    lines = ["| Recipe | mIoU after the first stage | mIoU at the end | by seed |", "|---|---|---|---|"]
    for name, runs in rows.items():
        scores = [[100 * phase["miou"] for phase in run["phases"].values()] for run in runs]
        first = _mean([s[0] for s in scores]) if len(scores[0]) > 1 else ""
        last = [s[-1] for s in scores]
        lines.append(f"| {name} | {first} | **{_mean(last)}** | {', '.join(f'{v:.1f}' for v in last)} |")
    protocol = next(iter(document["runs"][0]["phases"].values()))["protocol"]
    env = document["environment"]
    size = "×".join(map(str, protocol["input_size"]))
    lines += [
        "",
        f"{protocol['dataset']} {protocol['split']}, {protocol['images']} images at {size} (height × width), labels "
        f"at their own size, one view; {env['cpu']}, torch {env['torch']}; "
        f"`{document['command']}` → `benchmarks/results/{task}.json`.",
    ]
    return "\n".join(lines)


def per_class(task: str) -> str:
    """IoU by class at the end, mean over the seeds, in percent."""
    document = load(task)
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in document["runs"]:
        rows.setdefault(run["name"], []).append(list(run["phases"].values())[-1]["iou"])
    classes = list(next(iter(rows.values()))[0])
    lines = [f"| Recipe | {' | '.join(classes)} |", "|---|" + "---|" * len(classes)]
    for name, runs in rows.items():
        cells = [[100 * run[c] for run in runs if run[c] is not None] for c in classes]
        lines.append(f"| {name} | {' | '.join(f'{statistics.mean(c):.1f}' if c else '–' for c in cells)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


TABLES: dict[str, Callable[[], str]] = {
    "streets": lambda: accuracy("streets"),
    "rendered-camvid": lambda: accuracy("rendered-camvid"),
    "rendered-camvid classes": lambda: per_class("rendered-camvid"),
}


def main() -> None:
    """Rewrite README.md, or with --check exit with 1 where it differs."""
    old = README.read_text(encoding="utf-8")
    new = old
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if pattern.search(new):
            new = pattern.sub(rf"\g<1>{make()}\n\g<2>", new)
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if new == old else "README.md differs from benchmarks/results: run python benchmarks/tables.py"
        )
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
