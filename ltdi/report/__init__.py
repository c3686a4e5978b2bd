"""What a reader sees of a result: tables, figures and model cards."""

from ltdi.report.card import model_card
from ltdi.report.figure import Chain, plot_chains, plot_curves
from ltdi.report.plane import Plane, principal_plane
from ltdi.report.table import Result, Row, show

__all__ = [
    "Chain",
    "Plane",
    "Result",
    "Row",
    "model_card",
    "plot_chains",
    "plot_curves",
    "principal_plane",
    "show",
]
