"""Sample sheets: images before, after and back again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from udas_fast.evaluation.figure import save_figure

PANEL = 2.6  # inches


def write_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], path: Path) -> None:
    """Write a PNG with a row of pictures, uint8 ``[H, W, 3]``, for each sample, and ``titles`` above the columns."""
    height, width = rows[0][0].shape[:2]
    figure = Figure(figsize=(PANEL * len(titles), PANEL * height / width * len(rows) + 0.3), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, pictures in zip(axes, rows, strict=True):
        for place, picture in zip(line, pictures, strict=True):
            place.imshow(picture, interpolation="nearest")
            place.set_axis_off()
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize=10)
    save_figure(figure, path, dpi=100)
