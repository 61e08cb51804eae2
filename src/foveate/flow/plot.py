"""Figures of results: plain arrays in, a matplotlib figure out. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from foveate.flow.result import Result

COLOURS = ("#2f6fb0", "#c2571a", "#3f8f5f", "#8a5aa8", "#a0872c", "#5b6573")
LAYERS = ("layer", "layers")  # names of the axis that goes along the page


def plot_result(result: Result, names: Sequence[str] = ()) -> Figure:
    """One panel for each value of a result that has layers, with a line for each entry of one further axis."""
    chosen = list(names) or [name for name, axes in result.axes.items() if panels_of(axes)]
    unknown = [name for name in chosen if name not in result.values or not panels_of(result.axes[name])]
    if unknown or not chosen:
        raise ValueError(f"{result.name} has no curve {', '.join(unknown)}: choose among {', '.join(result.values)}")
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(axes, chosen, strict=False):
        (low, high), mean = result.interval(name), result.mean(name)
        along, *others = order(result.axes[name])
        where = result.axes[name].index(along)
        curves = [np.moveaxis(x, where, -1).reshape(-1, x.shape[where]) for x in (mean, low, high)]
        lines = result.labels[others[0]] if others else [""]
        for label, *curve in zip(lines, *curves, strict=True):
            band(panel, result.labels[along], *curve, label=str(label))
        panel.set_title(name, loc="left", fontsize=11)
        panel.set_xlabel(along)
        if others:
            panel.legend(frameon=False, fontsize=8)
    for panel in axes[len(chosen) :]:
        panel.set_visible(False)
    figure.suptitle(f"{result.name}, {len(result)} samples: mean and 95 % interval", x=0.01, ha="left", fontsize=11)
    return figure


def band(axes: Axes, layers: Sequence, mean: np.ndarray, low: np.ndarray, high: np.ndarray, label: str = "") -> None:
    """A curve over layers in its interval."""
    colour = COLOURS[len(axes.lines) % len(COLOURS)]
    place = np.arange(len(layers))
    axes.plot(place, mean, color=colour, label=label, linewidth=1.8, marker="o", markersize=3)
    axes.fill_between(place, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xticks(place[:: max(1, len(place) // 12)], [str(x) for x in layers][:: max(1, len(place) // 12)])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def panels_of(axes: Sequence[str]) -> bool:
    """Whether a value with these axes can be drawn: layers and at most one more."""
    return any(axis in LAYERS for axis in axes) and len(axes) <= 2


def order(axes: Sequence[str]) -> list[str]:
    """The axes, layers first."""
    return sorted(axes, key=lambda axis: axis not in LAYERS)
