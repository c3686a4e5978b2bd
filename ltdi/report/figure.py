"""Figures: inference chains over the loss in a plane of weight space, and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from torch import Tensor

from ltdi.errors import InputError
from ltdi.report.plane import Plane, principal_plane
from ltdi.report.style import CHAIN, COLOURS, LAND, MARKERS, PATH, STEPS, STYLE, save


@dataclass(frozen=True)
class Chain:
    """One task's inference chain and the optimiser's path that it should end on.

    Attributes:
        theta: [steps + 1, n] weights along inference.
        trajectory: [k, n] local targets theta_d .. theta_M.
        loss: [g, n] weights -> [g] losses.
        title: Of the task's panel.
    """

    theta: Tensor
    trajectory: Tensor
    loss: Callable[[Tensor], Tensor]
    title: str = ""


def plot_chains(path: Path | str, chains: Sequence[Chain], *, grid: int = 72) -> None:
    """Draw inference chains over the loss, one panel per task (Figure 1 of the paper).

    Every panel shows the loss on the principal plane of its own points; points off the plane are
    drawn at their projection.

    Args:
        path: PNG file.
        chains: One per panel; about three fit well.
        grid: Points of the loss along each side.

    Raises:
        InputError: If there is no chain, or one does not span a plane.
    """
    if not chains:
        raise InputError("there is no chain to draw", where="plot_chains")
    views = [_View.of(chain, grid) for chain in chains]
    norm = _scale([view.relief for view in views])
    steps = max(len(chain.theta) for chain in chains) - 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 3.0 * len(chains), 3.7), layout="constrained")
        panels = figure.subplots(1, len(chains), squeeze=False)[0]
        for panel, view in zip(panels, views, strict=True):
            land = _draw(panel, view, norm, max(steps, 1))
        _loss_bar(figure, land, panels)
        _step_bar(figure, panels, max(steps, 1))
        handles = [_handle(PATH, "s", "optimiser: local targets"), _handle(PATH, "*", "its end")]
        handles.append(_handle(CHAIN, "o", "inference chain"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        save(figure, path)


def plot_curves(
    path: Path | str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw curves with bands.

    Args:
        path: PNG file.
        curves: Name -> x, mean and half width of the interval.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis.

    Raises:
        InputError: If there is no curve.
    """
    if not curves:
        raise InputError("there is no curve to draw", where="plot_curves")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.4), layout="constrained")
        panel = figure.subplots()
        for i, (name, curve) in enumerate(curves.items()):
            x, mean, ci = (np.asarray(part, dtype=float) for part in curve)
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            # Colours repeat after seven curves: the line then tells them apart.
            line = ("-", "--", ":")[i // len(COLOURS) % 3]
            panel.plot(x, mean, line, color=colour, marker=marker, ms=4.5, lw=1.6, label=name)
            panel.fill_between(x, mean - ci, mean + ci, color=colour, alpha=0.15, lw=0)
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.grid(color="#e4e4e4", lw=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        measured = sorted({x for curve in curves.values() for x in curve[0]})
        if len(measured) <= 8:
            panel.set_xticks(measured)
        figure.legend(loc="outside right upper")
        save(figure, path)


@dataclass(frozen=True)
class _View:
    """A task in its plane: coordinates [.., 2], grid axes [g], relative loss [g, g], its unit."""

    plane: Plane
    chain: np.ndarray
    path: np.ndarray
    x: np.ndarray
    y: np.ndarray
    relief: np.ndarray
    low: float
    title: str

    @classmethod
    def of(cls, chain: Chain, grid: int) -> _View:
        points = torch.cat([chain.theta, chain.trajectory])
        plane = principal_plane(points)
        flat = plane.project(points).numpy()
        x, y = (_span(flat[:, axis], float(np.ptp(flat)), grid) for axis in (0, 1))
        mesh = torch.from_numpy(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
        # Blocks bound the memory of the lifted grid in large weight spaces.
        block = max(1, 4_000_000 // points.shape[1])
        with torch.no_grad():
            parts = [
                chain.loss(plane.lift(m).to(points)).flatten() for m in torch.split(mesh, block)
            ]
        loss = torch.cat(parts).double().cpu().reshape(grid, grid).numpy()
        steps = len(chain.theta)
        return cls(plane, flat[:steps], flat[steps:], x, y, *_relative(loss), chain.title)


def _span(values: np.ndarray, size: float, grid: int) -> np.ndarray:
    """A grid axis around the values; a flat set of points still gets a view of some height."""
    half = max(0.62 * float(np.ptp(values)), 0.15 * size, 1e-9)
    middle = float(values.max() + values.min()) / 2
    return np.linspace(middle - half, middle + half, grid)


def _relative(loss: np.ndarray) -> tuple[np.ndarray, float]:
    """Loss over its lowest value in the panel, and that value."""
    known = loss[np.isfinite(loss) & (loss > 0)]
    if not len(known):
        return np.ones_like(loss), 0.0
    low = float(known.min())
    # A loss that all but vanishes somewhere would push all else into one colour.
    floor = max(low, 1e-4 * float(np.median(known)))
    high = float(known.max())
    return np.nan_to_num(loss, nan=high, posinf=high).clip(floor) / floor, low


def _scale(reliefs: Sequence[np.ndarray]) -> LogNorm:
    """One logarithmic colour scale; a few very high corners share the darkest colour."""
    return LogNorm(1.0, max(1.1, *(float(np.quantile(r, 0.97)) for r in reliefs)))


def _draw(panel: Any, view: _View, norm: LogNorm, steps: int) -> Any:
    levels = np.geomspace(1.0, float(norm.vmax or 1), 17)
    height = view.relief.clip(levels[0], levels[-1])
    land = panel.contourf(view.x, view.y, height, levels, cmap=LAND, norm=norm)
    panel.contour(view.x, view.y, height, levels, colors="white", linewidths=0.5, alpha=0.8)
    panel.plot(*view.path.T, "-s", color=PATH, lw=1.5, ms=5.5, mec="white", mew=0.8, zorder=4)
    panel.plot(*view.path[-1], "*", color=PATH, ms=15, mec="white", mew=0.9, zorder=5)
    panel.plot(*view.chain.T, "-", color=CHAIN, lw=1.4, zorder=6)
    order = np.arange(len(view.chain))
    look: dict[str, Any] = {"edgecolors": "#5c1208", "linewidths": 0.5, "zorder": 7}
    panel.scatter(*view.chain.T, c=order, cmap=STEPS, vmin=0, vmax=steps, s=24, **look)
    _name_ends(panel, view)
    share = [100 * float(s) for s in view.plane.share]
    panel.set(
        title=f"{view.title}\nlowest loss {view.low:.3g}".strip(),
        xlabel=f"1st component ({share[0]:.1f} % of variance)",
        ylabel=f"2nd component ({share[1]:.1f} %)",
        xlim=(view.x[0], view.x[-1]),
        ylim=(view.y[0], view.y[-1]),
    )
    panel.locator_params(nbins=5)
    panel.tick_params(length=3, labelsize=8)
    return land


def _name_ends(panel: Any, view: _View) -> None:
    """Write "start" and "end" inside the panel, above or below their points."""
    points = np.concatenate([view.chain, view.path])
    where = np.stack([_place(points[:, 0], view.x), _place(points[:, 1], view.y)], 1)
    for word, index in (("start", 0), ("end", len(view.chain) - 1)):
        up = _freer_above(where, where[index])
        across = where[index, 0]
        text = panel.annotate(
            word,
            points[index],
            xytext=(0, 9 if up else -9),
            textcoords="offset points",
            ha="right" if across > 0.85 else "left" if across < 0.15 else "center",
            va="bottom" if up else "top",
            color="#7a1a08",
            fontweight="bold",
            zorder=9,
        )
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])


def _freer_above(points: np.ndarray, here: np.ndarray) -> bool:
    """Whether a word above a point of the unit square covers no more points than one below."""
    across, high = np.abs(points - here)[:, 0] < 0.12, points[:, 1] - here[1]
    above = int((across & (high > 0) & (high < 0.15)).sum()) + 100 * bool(here[1] > 0.9)
    below = int((across & (high < 0) & (high > -0.15)).sum()) + 100 * bool(here[1] < 0.1)
    return above <= below


def _place(values: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Where values lie on an axis, from 0 to 1."""
    place: np.ndarray = (values - axis[0]) / (axis[-1] - axis[0])
    return place


def _loss_bar(figure: Figure, land: Any, panels: Any) -> None:
    bar = figure.colorbar(land, ax=list(panels), pad=0.015, aspect=24)
    bar.set_label("loss / lowest loss of the panel")
    bar.locator = LogLocator(subs=(1, 2, 5))
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}")
    bar.update_ticks()
    bar.minorticks_off()


def _step_bar(figure: Figure, panels: Any, steps: int) -> None:
    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, steps), STEPS)
    bar = figure.colorbar(colours, ax=list(panels), pad=0.01, aspect=24)
    bar.set_label("denoising steps done")
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()


def _handle(colour: str, marker: str, label: str) -> Line2D:
    size = 11 if marker == "*" else 5.5
    return Line2D([], [], color=colour, marker=marker, ms=size, mec="white", mew=0.6, label=label)
