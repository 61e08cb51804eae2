"""Curves over layers as inline SVG: coloured by the page's style sheet, so they follow light, dark and print."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 28  # margins of the plot
MOST_BANDS = 4  # with more lines, intervals would hide each other: they stand in the table


@dataclass(frozen=True)
class Line:
    """A curve with its interval; one number per layer each, nan or None where there is none."""

    name: str
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A few curves over the same layers.

    Attributes:
        title, note: what is shown, and how to read it.
        unit: of the vertical axis, in a word or two.
        log: whether the vertical axis is logarithmic.
        mark: a level to draw, with its name.
    """

    title: str
    note: str
    unit: str
    lines: Sequence[Line]
    log: bool = False
    mark: tuple[float, str] | None = None

    def html(self) -> str:
        """A figure with legend, plot and the numbers as a table that can be unfolded."""
        numbers = [line for line in self.lines if any(known(y) for y in line.mean)]
        legend = "".join(
            f'<span class="key" style="--c:var(--c{i})">{escape(line.name)}</span>' for i, line in enumerate(numbers)
        )
        data = [{"name": line.name, "mean": tidy(line.mean)} for line in numbers]
        return (
            f'<figure class="chart" data-lines="{escape(json.dumps(data))}"><figcaption><h3>{escape(self.title)}</h3>'
            f'<p>{escape(self.note)}</p><div class="keys">{legend}</div></figcaption>'
            f"{self.svg(numbers)}{table(numbers)}</figure>"
        )

    def svg(self, lines: Sequence[Line]) -> str:
        values = [y for line in lines for ys in (line.mean, line.low, line.high) for y in ys if known(y)]
        values += [self.mark[0]] if self.mark else []
        ticks = log_ticks(values) if self.log else linear_ticks(values)
        bottom, top = ticks[0], ticks[-1]
        depth = max((len(line.mean) for line in lines), default=1)

        def x(layer: int) -> float:
            return LEFT + layer * (WIDTH - LEFT - RIGHT) / max(1, depth - 1)

        def y(value: float) -> float:
            part = (
                math.log(max(value, bottom) / bottom) / math.log(top / bottom)
                if self.log
                else (value - bottom) / (top - bottom)
            )
            return HEIGHT - BOTTOM - min(max(part, 0), 1) * (HEIGHT - TOP - BOTTOM)

        out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">']
        for tick in ticks:
            out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            out.append(f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
        for layer in range(0, depth, max(1, math.ceil(depth / 12))):
            out.append(f'<text class="tick" x="{x(layer):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{layer}</text>')
        out.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">layer</text>')
        out.append(f'<text class="tick" x="{LEFT}" y="10">{escape(self.unit)}</text>')
        if self.mark:
            level = y(self.mark[0])
            out.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>')
            name = escape(self.mark[1])
            out.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{level - 4:.1f}" text-anchor="end">{name}</text>')
        for i, line in enumerate(lines):
            style = f'style="--c:var(--c{i})"'
            for run in runs(line.low, line.high) if len(lines) <= MOST_BANDS else ():
                edge = [(x(k), y(line.high[k])) for k in run] + [(x(k), y(line.low[k])) for k in reversed(run)]
                out.append(f'<polygon class="band" {style} points="{path(edge)}"/>')
            for run in runs(line.mean):
                points = [(x(k), y(line.mean[k])) for k in run]
                out.append(f'<polyline class="line" {style} points="{path(points)}"/>')
                out += [f'<circle class="dot" {style} cx="{px:.1f}" cy="{py:.1f}" r="2"/>' for px, py in points]
        out.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="0" x2="0"/></svg>')
        return "".join(out)


def table(lines: Sequence[Line]) -> str:
    """The numbers behind a chart, folded away."""
    head = "".join(f"<th>{escape(line.name)}</th>" for line in lines)
    rows = "".join(
        f"<tr><th>{layer}</th>" + "".join(f"<td>{interval(line, layer)}</td>" for line in lines) + "</tr>"
        for layer in range(max((len(line.mean) for line in lines), default=0))
    )
    return (
        f'<details><summary>numbers</summary><div class="scroll"><table><tr><th>layer</th>{head}</tr>{rows}</table>'
        "</div></details>"
    )


def interval(line: Line, layer: int) -> str:
    if layer >= len(line.mean) or not known(line.mean[layer]):
        return "-"
    low, high = (f"{y:.3g}" if known(y) else "?" for y in (line.low[layer], line.high[layer]))
    return f"{line.mean[layer]:.3g} <small>({low} to {high})</small>"


def runs(*curves: Sequence[float]) -> list[list[int]]:
    """Stretches of neighbouring layers in which all curves are known."""
    whole = [layer for layer, values in enumerate(zip(*curves, strict=True)) if all(map(known, values))]
    return [[layer for _, layer in run] for _, run in groupby(enumerate(whole), key=lambda pair: pair[1] - pair[0])]


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def tidy(values: Sequence[float]) -> list[float | None]:
    """Numbers that JSON can hold, three figures each."""
    return [float(f"{v:.3g}") if known(v) else None for v in values]


def path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)


def linear_ticks(values: Sequence[float]) -> list[float]:
    """Three to six round numbers that hold all values; from 0 on if none is below."""
    low, high = min([0.0, *values]), max([0.0, *values])
    if low == high:
        return [0.0, 1.0]
    span = high - low
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def log_ticks(values: Sequence[float], decades: int = 6) -> list[float]:
    """Powers of ten that hold all positive values, or the upper `decades` of them."""
    positive = [v for v in values if v > 0] or [1.0]
    high = math.ceil(math.log10(max(positive)))
    low = max(math.floor(math.log10(min(positive))), high - decades)
    return [10.0**k for k in range(min(low, high - 1), high + 1)]
