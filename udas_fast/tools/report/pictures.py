"""Sections of the page with pictures: samples, the worst images, translation, and the pseudo-labels of each round."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from udas_fast.tools.report.charts import histogram
from udas_fast.tools.report.markup import Element, element, percent, table
from udas_fast.tools.report.read import LabelReport, RunRecord

WIDTHS = (1600, 1280, 960, 720, 480, 320)
MOST_PICTURES = 24
ALL_BYTES = 3_000_000  # of all pictures of a page; base64 makes 4 MB of them
QUALITY = 85


def validation(runs: dict[str, RunRecord]) -> list[Element]:
    """Show predictions on validation images."""
    return _pictures(runs, "validation")


def worst(runs: dict[str, RunRecord]) -> list[Element]:
    """Show the images of the lowest mIoU, as `evaluate --worst` draws them."""
    return _pictures(runs, "worst")


def translation(runs: dict[str, RunRecord]) -> list[Element]:
    """Show source images before and after translation."""
    return _pictures(runs, "translation")


def pseudo_labels(runs: dict[str, RunRecord]) -> list[Element]:
    """Show the kept share, its accuracy and the teacher's confidence for each round of self-training."""
    parts: list[Element] = []
    for name, run in runs.items():
        if run.label_reports:
            parts += [element("h3", name)] if len(runs) > 1 else []
            parts += _rounds(run.label_reports)
    return parts + _pictures(runs, "pseudo-labels")


def _rounds(rounds: list[LabelReport]) -> list[Element]:
    header = ("Round", "Images", "Kept, %", "Accuracy of kept, %")
    rows = [[r.phase, f"{r.images:,}", percent(r.kept_share_all), percent(r.accuracy_all)] for r in rounds]
    parts = [table(header, rows)]
    for number, r in enumerate(rounds, 1):
        accuracy = r.accuracy or (None,) * len(r.classes)
        rows = [
            [name, f"{threshold:.3g}", percent(kept), percent(right)]
            for name, threshold, kept, right in zip(
                r.classes, r.threshold, r.kept_share, accuracy, strict=True
            )
        ]
        by_class = table(("Class", "Threshold", "Kept, %", "Accuracy of kept, %"), rows)
        drawings = [
            histogram(name, *counts, threshold)
            for name, counts, threshold in zip(r.classes, r.histogram, r.threshold, strict=True)
        ]
        text = "Confidences from 0 to 1: kept pixels in colour, dropped pixels in grey, the threshold dashed."
        content = (by_class, element("p", text, class_="soft"), element("div", *drawings, class_="small"))
        is_open = "open" if number == len(rounds) else None
        parts.append(element("details", element("summary", f"{r.phase} by class"), *content, open=is_open))
    return parts


def _pictures(runs: dict[str, RunRecord], kind: str) -> list[Element]:
    each = max(1, MOST_PICTURES // len(runs))
    # Samples first: a page with too many pictures keeps these.
    chosen = {
        name: sorted(run.pictures, key=lambda p: _kind(p) != "validation")[:each]
        for name, run in runs.items()
    }
    most_bytes = ALL_BYTES // max(1, sum(map(len, chosen.values())))
    parts: list[Element] = []
    for name, run in runs.items():
        for path in (p for p in chosen[name] if _kind(p) == kind):
            title = f"{name}: {path.name}" if len(runs) > 1 else path.name
            source = data_uri(path, most_bytes)
            shown = (
                element("p", "This picture cannot be read.")
                if source is None
                else element("img", src=source, alt=title)
            )
            parts.append(element("figure", element("figcaption", title), shown))
        others = sum(_kind(p) == kind and p not in chosen[name] for p in run.pictures)
        if others:
            parts.append(element("p", f"{others} more in {name}/pictures", class_="soft"))
    return parts


def _kind(path: Path) -> str:
    """Return the section that a picture belongs to."""
    if path.name.startswith("translation-"):
        return "translation"
    if path.stem == "worst":
        return "worst"
    return "pseudo-labels" if path.stem.endswith("-pseudo") else "validation"


def data_uri(path: Path, most_bytes: int) -> str | None:
    """Encode a picture as JPEG at the largest of :data:`WIDTHS` that fits in ``most_bytes``, else the smallest.

    Returns None where the file is no picture, as a run that was killed while drawing may leave it.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    content = b""
    for width in (min(picture.width, WIDTHS[0]), *(w for w in WIDTHS[1:] if w < picture.width)):
        shrunk = picture.copy()
        shrunk.thumbnail((width, 4 * width))
        buffer = io.BytesIO()
        shrunk.save(buffer, "JPEG", quality=QUALITY, subsampling=0)  # thin coloured edges stay sharp
        content = buffer.getvalue()
        if len(content) <= most_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
