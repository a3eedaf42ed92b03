"""The page: sections in reading order, each from what the runs have; a section without content is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from udas_fast.atomic import atomic_write
from udas_fast.errors import bad
from udas_fast.tools.report import results, samples, training
from udas_fast.tools.report.markup import Element, document, element
from udas_fast.tools.report.read import Run, read_runs

# Nothing is loaded and nothing runs, whatever a run's files say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SECTIONS: dict[str, Callable[[dict[str, Run]], list[Element]]] = {
    "Summary": training.summary,
    "Protocol": results.protocols,
    "Curves": training.curves,
    "mIoU by phase": results.by_phase,
    "IoU by class": results.by_class,
    "Confusion": results.confusions,
    "Samples": samples.validation,
    "Pseudo-labels": samples.pseudo_labels,
    "Translation": samples.translation,
    "Speed": training.speed,
    "Environment": training.environment,
    "Recipe": training.recipe,
}


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about ``runs`` to ``out``; one run's default is its ``report.html``.

    The same runs give the same bytes. Returns where the page is.

    Raises:
        InputError: a folder is no run, a file in it is damaged, or ``out`` is missing or cannot be written.
    """
    if out is None and len(runs) != 1:
        raise bad("--out", f"none for {len(runs)} runs", "the page's file")
    out = out or runs[0] / "report.html"
    page = render(read_runs(runs))
    atomic_write(page, out)
    return out


def render(runs: dict[str, Run]) -> str:
    """The page's text; ``runs`` by the names that it calls them."""
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
