"""Write the tables of README.md, docs/ and benchmarks/README.md, and the charts, from results/.

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`; nothing else is changed.
`python benchmarks/tables.py --check` only compares.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import accuracy
import build_time
import cuda_model
import data
import harness
import int8
import matplotlib.pyplot as plt
import ops
import predict
import step

from udas_fast.atomic import atomic_write
from udas_fast.engine.memory import GIB
from udas_fast.evaluation import save_figure
from udas_fast.memory.table import policy
from udas_fast.tools.study.collect import Spread, StudyTable
from udas_fast.tools.study.figures import methods_figure
from udas_fast.tools.study.tables import note, parts_table, study_tables

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = (HERE.parent / "README.md", HERE / "README.md", *sorted(DOCS.glob("*.md")))
CHARTS = DOCS / "images"


def load(name: str) -> dict[str, Any]:
    """Load one committed result."""
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def conditions(text: str) -> str:
    """Return what a table was measured under, in small print."""
    return f"<small>{text}</small>"


def headlines() -> str:
    """Return README's two figures: what the other images add to a few labels, and what fusing saves."""
    table = StudyTable.from_dict(load("baselines-rendered-camvid")["tables"]["camvid"])
    few = min(row.labels for row in table.rows if row.labels)
    adapted, joint, alone = (
        next(row.miou for row in table.rows if (row.recipe, row.labels) == (recipe, few))
        for recipe in ("online_self_training", "joint", "supervised")
    )
    (row,) = (
        row
        for row in load("ops-cpu-avx512")["rows"]
        if [row[key] for key in ("op", "pass", "dtype")] == ["cross_entropy", "forward+backward", "float32"]
    )
    ours, eager = row["ours"], row["eager"]
    return (
        f"- **{adapted.mean:.0f} instead of {alone.mean:.0f} mIoU** from the same {few} labelled CamVid images: online "
        f"self-training with rendered and unlabelled ones beside them, and these labels alone; {joint.mean:.0f} with "
        f"the rendered ones; EfficientNet-Lite0, {len(table.seeds)} seeds ([results](docs/results.md)).\n"
        f"- **{eager['cpu_ms'] / ours['cpu_ms']:.0f}× less CPU time, {ours['extra_mib']:.0f} MiB instead of "
        f"{eager['extra_mib']:.0f}**: cross-entropy and its gradient at 1280×720 with 19 classes, against eager "
        "PyTorch ([speed](docs/memory-and-speed.md))."
    )


def demo(task: str) -> str:
    """Return mIoU by row, mean ± standard deviation over seeds, after the first stage and at the end."""
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
        conditions(
            f"{protocol['dataset']} {protocol['split']}, {protocol['images']} images at {size} (height × width), "
            f"labels at their own size, one view; {env['cpu']}, {env['threads']} thread, torch {env['torch']}; "
            f"`{document['command']}` → `benchmarks/results/{task}.json`."
        ),
    ]
    return "\n".join(lines)


def study(name: str) -> str:
    """Return the tables of a study of one pair of domains, for each target, and the conditions."""
    if not (HERE / "results" / f"{name}.json").is_file():
        return f"`python benchmarks/accuracy.py {name} --seeds 0 1 2`: not measured."
    document = load(name)
    if "study" in document:  # of networks from random weights
        table = StudyTable.from_dict(document["study"])
        made = "\n\n".join(study_tables(table))
        measured = note(table).removesuffix(f"; `{table.command}`")
        command = f"`{document['command']}` at commit {document['environment']['commit']}"
        return f"{made}\n\n{conditions(f'{measured}; {command} → `benchmarks/results/{name}.json`.')}"
    found = {target: StudyTable.from_dict(table) for target, table in document["tables"].items()}
    random = found.pop(accuracy.RANDOM, None)
    made = []
    for target, table in found.items():
        head, *rest = "\n\n".join(study_tables(table)).split("\n")
        made.append("\n".join([head.replace("Labelled target images", f"Labels of {target}"), *rest]))
    if random is not None:
        score = random.rows[0].miou
        made.append(f"From random weights, {random.rows[0].name.lower()} has {score}.")
    table = next(iter(found.values()))
    measured = note(table, STEPS).removesuffix(f"; `{table.command}`")  # the JSON has the whole command
    where = f"{measured}; `{document['command']}` → `benchmarks/results/{name}.json`."
    return "\n\n".join([*made, conditions(where)])


def precision(name: str) -> str:
    """Return mIoU of the same runs in each precision, and the difference from fp32 by seed."""
    if not (HERE / "results" / f"{name}.json").is_file():
        return f"`python benchmarks/accuracy.py {name}`: not measured."
    document = load(name)
    tables = {kind: StudyTable.from_dict(table) for kind, table in document["precisions"].items()}
    rows = []
    for kind, table in tables.items():
        miou = table.rows[0].miou
        gap = Spread(**document["minus_fp32"][kind]) if kind != "fp32" else ""
        less = ", ".join(f"{v:+.1f}" for v in gap.by_seed) if gap else ""
        rows.append([kind, miou, ", ".join(f"{v:.1f}" for v in miou.by_seed), gap, less])
    if "fp16" not in tables:
        rows.append(["fp16", "not measured: needs a GPU", "", "", ""])
    made = harness.table(["precision", "mIoU", "by seed", "− fp32", "by seed"], rows)
    table = tables["fp32"]
    seeds = ", ".join(map(str, table.seeds))
    where = conditions(
        f"{table.rows[0].name}, {table.source} → {table.target}, {table.steps} steps, "
        f"mean ± standard deviation over seeds {seeds}; {table.environment['cpu']}, "
        f"torch {table.environment['torch']}; `{document['command']}` → `benchmarks/results/{name}.json`."
    )
    return f"{made}\n\n{where}"


def plan(name: str) -> str:
    """Return the first policy that fits for each card and batch size, with the GB that each stage needs."""
    needs: dict[tuple[int, str], list[float]] = {}
    for row in (rows := load(name)["rows"]):
        way = row["batch_size"], policy(row["checkpointing"], row["micro_batch_size"])
        needs[way] = _gigabytes(row)
    sizes = sorted({size for size, _ in needs})
    lines = []
    for card in (4, 6, 8, 11):
        fits = [[(p, gb) for (n, p), gb in needs.items() if n == size and max(gb) <= card] for size in sizes]
        found = (f"{f[0][0]} ({' / '.join(f'{gb:.1f}' for gb in f[0][1])} GB)" if f else "–" for f in fits)
        lines.append([f"{card} GB", *found])
    made = harness.table(["card", *(f"batch {size}" for size in sizes)], lines)
    stages = " / ".join(rows[0]["stages"])
    return f"{made}\n\nGB of {stages}; `udas-fast plan udas_tuned --json benchmarks/results/{name}.json`."


def vit(name: str) -> str:
    """Return mIoU of a vision transformer of real weights by what of it was trained."""
    document = load(name)
    scores = {row: list(found["phases"].values())[-1] for row, found in document["rows"].items()}
    made = harness.table(["DINOv2-S", "mIoU"], [[row, f"{100 * s['miou']:.1f}"] for row, s in scores.items()])
    resumed = "the same bits" if document["resumed_to_the_same_bits"] else "other bits"
    protocol, env = scores["fine-tuned"]["protocol"], document["environment"]
    size = "×".join(map(str, protocol["input_size"]))
    where = conditions(
        f"Source alone, {document['steps']} steps; adapted: {document['adaptation_steps']} more with images "
        f"of the target; stopped near step {document['stopped_after']} and resumed it ends with {resumed}. "
        f"{protocol['dataset']} {protocol['split']} at {size}, seed 0; {env['cpu']}, torch {env['torch']}; "
        f"`{document['command']}` → `benchmarks/results/{name}.json`."
    )
    return f"{made}\n\n{where}"


def presets(cards: Sequence[int]) -> str:
    """Return the network, images and memory of online self-training's preset for each card, in GB."""
    lines = []
    for card in cards:
        document = load(f"plan-online-{card}gb")
        recipe = document["recipe"]
        fit = [row for row in document["rows"] if max(_gigabytes(row)) <= card]
        way = policy(fit[0]["checkpointing"], fit[0]["micro_batch_size"])
        stages = " / ".join(f"{gb:.1f}" for gb in _gigabytes(fit[0]))
        size, crop = ("×".join(map(str, recipe["input"]["target"][key])) for key in ("size", "crop"))
        row = [f"{card} GB", f"`{recipe['model']['backbone']}`", f"{crop} of {size}", fit[0]["batch_size"]]
        lines.append([*row, f"`{way}`", stages])
    header = ["card", "backbone", "crops (height × width)", "batch", "checkpointing", "GB of source / online"]
    return harness.table(header, lines)


def _gigabytes(row: dict[str, Any]) -> list[float]:
    """Return what each stage of a row of `udas-fast plan` needs, in GB."""
    return [stage["needed"] / GIB for stage in row["stages"].values()]


def tried(name: str) -> str:
    """Return mIoU of variants of our recipe, and their difference from the recipe itself."""
    if not (HERE / "results" / f"{name}.json").is_file():
        return "Not measured."
    document = load(name)
    table = StudyTable.from_dict(document["table"])
    measured = note(table, STEPS).removesuffix(f"; `{table.command}`")
    where = f"{measured}; `{document['command']}` → `benchmarks/results/{name}.json`."
    return f"{parts_table(table)}\n\n{conditions(where)}"


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def benchmark(name: str, table: Callable[[dict[str, Any]], str]) -> str:
    """Return the ``table`` of one of a benchmark's results, with the machine below."""
    if not (HERE / "results" / f"{name}.json").is_file():
        return "Not measured."
    document = load(name)
    env = document["environment"]
    where = (
        f"{env['cpu']}, {env['threads']} thread, {env['simd']}, torch {env['torch']}, commit {env['commit']}"
    )
    faults = "" if env["page_faults"] else ", allocator that keeps its memory"
    return f"{table(document)}\n\n{where}{faults}; `benchmarks/results/{name}.json`."


def host(name: str, before: str) -> str:
    """Return the host time of a call before a change and after it, and eager PyTorch's."""
    document = load(name)
    earlier = {(row["op"], row["pass"]): row["ours_us"] for row in load(before)["rows"]}
    rows = []
    for row in document["rows"]:
        old, new = earlier[row["op"], row["pass"]], row["ours_us"]
        rows.append([row["op"], row["pass"], old, new, old / new, row["eager_us"]])
    made = harness.table(["operator", "pass", "before µs", "now µs", "before ÷ now", "eager µs"], rows)
    return benchmark(name, lambda _: made).replace(f"{name}.json`", f"{before}.json`, `{name}.json`")


def model() -> str:
    """Return the model of the CUDA kernels' time."""
    document = load("cuda-model")
    return (
        f"{cuda_model.table(document)}\n\nA model, not measured: float32, 19×90×160 → 720×1280, "
        f"nvcc {document['nvcc']}; `{document['command']}` → `benchmarks/results/cuda-model.json`."
    )


def chart(names: Sequence[str]) -> None:
    """Draw how many times longer eager takes than ours, 1280×720 float32, with a bar for each result in ``names``."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for offset, name in enumerate(names):
        rows = [r for r in load(name)["rows"] if (r["size"], r["dtype"]) == ("1280x720", "float32")]
        last = {row["op"]: row for row in rows}  # the pass with the gradient, where there is one
        values = [row["eager"]["cpu_ms"] / row["ours"]["cpu_ms"] for row in last.values()]
        places = [i + (offset - (len(names) - 1) / 2) * 0.8 / len(names) for i in range(len(values))]
        bars = axes.barh(places, values, height=0.8 / len(names), label=name.removeprefix("ops-cpu-"))
        axes.bar_label(bars, [f"{v:.0f}×" for v in values], padding=2, fontsize=8)
        axes.set_yticks(range(len(last)), [f"{op} ({row['pass']})" for op, row in last.items()])
    axes.invert_yaxis()
    axes.set_xlabel("eager PyTorch ÷ ours, CPU time of one thread, 19 classes, 1280×720, float32")
    axes.legend()
    save_figure(figure, CHARTS / "ops-cpu.png", dpi=120)
    plt.close(figure)


CHARTED = ("ops-cpu-avx512", "ops-cpu-avx2", "ops-cpu-avx512-no-page-faults")
OPERATORS = (*CHARTED, "ops-cpu-avx512-compile", "ops-cpu-avx512-sizes", "ops-cpu-avx512-batches")
STEPS = (
    f"the source alone {accuracy.STEPS} steps from ImageNet weights; from that network "
    f"{accuracy.LABELLED_STEPS - accuracy.STEPS} more in rows that see the source, "
    f"{accuracy.LABELLED_STEPS} from ImageNet weights in the others"
)
TABLES: dict[str, Callable[[], str]] = {
    "headlines": headlines,
    "streets": partial(demo, "streets"),
    **{name: partial(study, name) for name in accuracy.STUDIES},
    **{
        name: partial(tried, name)
        for name in ("tried-camvid-0-labels", "tried-camvid-20-labels", "tried-camvid-drives-0-labels")
    },
    "precision-day-dusk": partial(precision, "precision-day-dusk"),
    "vit-rendered-camvid": partial(vit, "vit-rendered-camvid"),
    "plan": partial(plan, "plan"),
    "presets": partial(presets, (6, 11, 24)),
    "data-cpu": partial(benchmark, "data-cpu", data.table),
    "predict-cpu": partial(benchmark, "predict-cpu", predict.table),
    "int8": partial(benchmark, "int8", int8.table),
    "build-time": partial(benchmark, "build-time", build_time.table),
    "step-cpu": partial(benchmark, "step-cpu", step.table),
    **{name: partial(benchmark, name, ops.table) for name in OPERATORS},
    **{
        f"floor-cpu-{simd}": partial(benchmark, f"floor-cpu-{simd}", ops.floor_table)
        for simd in ("avx512", "avx2")
    },
    "host-cpu": partial(host, "host-cpu", "host-cpu-before"),
    "cuda-model": model,
}


def main() -> None:
    """Rewrite the pages and the charts; with --check exit with 1 where a page differs."""
    check = "--check" in sys.argv[1:]
    for page in PAGES:
        old = new = page.read_text(encoding="utf-8")
        for name, make in TABLES.items():
            pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
            if pattern.search(new):
                new = pattern.sub(rf"\g<1>{make()}\n\g<2>", new)
        if check and new != old:
            sys.exit(f"{page.name} differs from benchmarks/results: run python benchmarks/tables.py")
        if not check:
            atomic_write(new, page)
    if not check:
        chart(CHARTED)
        for path in sorted((HERE / "results").glob("methods-*.json")):
            document = load(path.stem)
            table = document.get("study") or next(iter(document["tables"].values()))
            methods_figure(StudyTable.from_dict(table), CHARTS / f"{path.stem}.png")


if __name__ == "__main__":
    main()
