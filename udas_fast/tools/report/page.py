"""The HTML page: sections in reading order; a section without content is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from udas_fast.atomic import atomic_write
from udas_fast.errors import bad
from udas_fast.tools.report import history, pictures, scores
from udas_fast.tools.report.markup import Element, document, element
from udas_fast.tools.report.read import RunRecord, read_runs

# The browser loads and runs nothing, whatever the files of a run contain.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SECTIONS: dict[str, Callable[[dict[str, RunRecord]], list[Element]]] = {
    "Summary": history.summary,
    "Protocol": scores.protocols,
    "Curves": history.curves,
    "mIoU by step": scores.by_step,
    "mIoU by phase": scores.by_phase,
    "IoU by class": scores.by_class,
    "Confusion": scores.confusions,
    "Reliability": scores.calibration,
    "Samples": pictures.validation,
    "Worst images": pictures.worst,
    "Pseudo-labels": pictures.pseudo_labels,
    "Translation": pictures.translation,
    "Speed": history.speed,
    "Environment": history.environment,
    "Recipe": history.recipe,
}


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about runs and return its path.

    ``out`` may be left out for one run: the page is then ``report.html`` in its folder. The same runs give the same
    bytes.

    Raises:
        InputError: a folder holds no run, a file in it is damaged, or ``out`` is missing or cannot be written.
    """
    if out is None and len(run_dirs) != 1:
        raise bad("--out", f"none for {len(run_dirs)} runs", "the page's file")
    out = out or run_dirs[0] / "report.html"
    page = render(read_runs(run_dirs))
    atomic_write(page, out)
    return out


def render(runs: dict[str, RunRecord]) -> str:
    """Return the page's text; ``runs`` are by the names that the page uses."""
    made = {name: section(runs) for name, section in SECTIONS.items()}
    present = {name: content for name, content in made.items() if content}
    ids = {name: name.lower().replace(" ", "-") for name in present}
    links = [element("a", name, href=f"#{ids[name]}") for name in present]
    title = ", ".join(runs)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", (resources.files(__package__) / "style.css").read_text(encoding="utf-8")),
    )
    sections = [
        element("section", element("h2", name), *content, id=ids[name]) for name, content in present.items()
    ]
    body = element("body", element("h1", title), element("nav", *links), *sections)
    return document(element("html", head, body, lang="en"))
