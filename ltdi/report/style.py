"""The look that figures share, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from ltdi.files import replacing

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
MARKERS = "os^DvPX"
DPI = 160
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}
LAND = LinearSegmentedColormap.from_list("land", ["#ffffff", "#c9d6df", "#7d95a8", "#4b6478"])
STEPS = LinearSegmentedColormap.from_list("steps", ["#fff1b8", "#f59a23", "#a81c0b"])
PATH, CHAIN = "#0b3c6f", "#d9541e"


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG file atomically."""
    canvas: Any = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    # A palette of 256 colours halves the file and is not seen in flat colours.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256)
    with replacing(Path(path)) as temporary:
        picture.save(temporary, "PNG", optimize=True, dpi=(DPI, DPI))
