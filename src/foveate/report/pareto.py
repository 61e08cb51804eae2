"""Draw fidelity against cost: all that was tried, the front, what was chosen, and the published defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foveate.files import save

INK, GREY, PALE, CHOSEN = "#1c2028", "#8a909c", "#d9dce1", "#d55e00"
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#7a5195", "#e69f00")
MARKERS = "sD^vP"


@dataclass(frozen=True)
class Mark:
    """A method in the picture. Costs are shares of dense; agreement with its 95 % interval.

    role: "chosen", "front" or "published".
    """

    name: str
    role: str
    flops: float
    time: float | None
    agreement: tuple[float, float, float]


def pareto(marks: Sequence[Mark], tried: Sequence[tuple[float, float]], budget: float | None, path: Path) -> None:
    """Write the picture: agreement against exact FLOPs and, beside it, against measured time.

    tried: (FLOPs, agreement) of every candidate of the search, on other samples. budget: in FLOPs, drawn as a line.
    """
    figure = Figure(figsize=(10.4, 4.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    if tried:
        x, y = zip(*tried, strict=True)
        left.scatter([100 * v for v in x], [100 * v for v in y], s=9, color=PALE, label="tried in the search", zorder=1)
    if budget is not None:
        left.axvline(100 * budget, color=GREY, linewidth=1, linestyle=":")
        left.text(
            100 * budget, 0.01, " the budget", transform=left.get_xaxis_transform(), color=GREY, fontsize=8, va="bottom"
        )
    draw(left, marks, [100 * mark.flops for mark in marks])
    left.set_xlabel("exact prefill FLOPs of the decoder, % of dense")
    left.set_ylabel("answers that are the dense model's, %")
    timed = [mark for mark in marks if mark.time is not None]
    draw(right, timed, [100 * mark.time for mark in timed if mark.time is not None])
    right.set_xlabel("measured time to the first token, % of dense")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=9)
    figure.suptitle("fidelity against cost, on samples that nothing was chosen on", x=0.01, ha="left", color=INK)
    save(path, lambda half: figure.savefig(half, format=path.suffix.lstrip("."), dpi=150))


def draw(axes: Axes, marks: Sequence[Mark], costs: Sequence[float]) -> None:
    """Points with intervals; methods that were found for all questions are joined by a line."""
    joined = [mark.role != "published" and mark.name != "by kind" for mark in marks]
    line = sorted((cost, m.agreement[0]) for m, cost, yes in zip(marks, costs, joined, strict=True) if yes)
    axes.plot([x for x, _ in line], [100 * y for _, y in line], color=CHOSEN, linewidth=1, zorder=2)
    styles = iter(zip(COLOURS, MARKERS, strict=True))
    fronts = 0
    for mark, cost in zip(marks, costs, strict=True):
        value, low, high = (100 * v for v in mark.agreement)
        if mark.role == "published":
            colour, marker = next(styles)
            style = {"color": colour, "marker": marker, "markersize": 7, "label": mark.name}
        elif mark.role == "chosen":
            style = {"color": CHOSEN, "marker": "*", "markersize": 15, "label": f"chosen, {mark.name}", "zorder": 5}
        else:
            fronts += 1
            label = "one for all, at several budgets" if fronts == 1 else None
            style = {"color": CHOSEN, "marker": "o", "markersize": 5, "label": label, "zorder": 4}
        spread = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        axes.errorbar([cost], [value], spread, linestyle="none", elinewidth=0.9, **style)
    axes.grid(color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
