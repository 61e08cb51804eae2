"""Draw quality against cost: plain numbers in, a picture out. Knows nothing of models or tasks beyond their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foveate.files import save

Point = tuple[float, float, float, float]  # cost, quality, and its 95 % interval: low, high; all in percent of dense
INK, GREY, PALE = "#1c2028", "#8a909c", "#d9dce1"
BASELINES = {"random": ("#6b7280", "--", "s"), "uniform": ("#a3a9b3", ":", "^")}  # colour, line, marker
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b")
MARKERS = "oDvP*X<>"


def tradeoff(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], cost: str, quality: str, title: str, path: Path
) -> None:
    """Write the picture: the first panel large, the others small beside it, all with one legend.

    panels: title -> method -> its points. cost, quality: what the axes show. path: its ending chooses the format.
    """
    (first, main), *others = panels.items()
    rows = min(3, -(-len(others) // 2))
    columns = -(-len(others) // rows) if others else 0
    figure = Figure(figsize=(6.4 + 2.3 * columns, 4.6 + 0.7 * rows), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(max(rows, 1), 1 + columns, width_ratios=[2.6] + [1] * columns)
    styles = styles_of(main)

    axes = figure.add_subplot(grid[:, 0])
    draw(axes, main, styles, size=7)
    axes.text(0.01, 100, "dense", transform=axes.get_yaxis_transform(), ha="left", va="bottom", color=GREY, fontsize=8)
    axes.set_title(first, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(cost)
    axes.set_ylabel(quality)
    for number, (name, series) in enumerate(others):
        small = figure.add_subplot(grid[number // columns, 1 + number % columns])
        draw(small, series, styles, size=4)
        small.set_title(name, loc="left", fontsize=9, color=INK)
        small.tick_params(labelsize=7)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    save(path, lambda half: figure.savefig(half, format=path.suffix.lstrip("."), dpi=150))


def styles_of(series: Mapping[str, Sequence[Point]]) -> dict[str, tuple[str, str, str]]:
    """Colour, line and marker of each method; the baselines are always grey."""
    methods = [name for name in series if name not in BASELINES]
    chosen = {name: (COLOURS[i % len(COLOURS)], "-", MARKERS[i % len(MARKERS)]) for i, name in enumerate(methods)}
    return {**chosen, **{name: style for name, style in BASELINES.items() if name in series}}


def draw(
    axes: Axes, series: Mapping[str, Sequence[Point]], styles: Mapping[str, tuple[str, str, str]], size: float
) -> None:
    axes.axhline(100, color=PALE, linewidth=1.2, zorder=0)
    for name, (colour, line, marker) in styles.items():
        points = sorted(point for point in series.get(name, ()) if point[1] == point[1])  # a NaN is no point
        if not points:
            continue
        x, y, low, high = zip(*points, strict=True)
        spread = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        spread = [[max(length, 0.0) for length in side] for side in spread]
        axes.errorbar(
            x, y, spread, color=colour, linestyle=line, marker=marker, markersize=size, linewidth=size / 4,
            elinewidth=0.8, capsize=0, label=name, zorder=2 if name in BASELINES else 3,
        )  # fmt: skip
    axes.grid(color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
