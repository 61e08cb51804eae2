"""Numbers into words and tables for a terminal. Knows results as plain values; runs nothing."""

import statistics
from collections.abc import Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text


def duration(seconds: float) -> str:
    """Seconds, or milliseconds below one, with three figures: 0.0123 -> "12.3 ms"."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{f'{value:#.3g}'.rstrip('.')} {unit}"


def layer_ranges(counts: Sequence[int]) -> str:
    """Counts per layer, equal neighbours joined, a line for each: [9, 9, 5] -> "0-1: 9" and "2: 5"."""
    words, layer = [], 0
    for count, run in groupby(counts):
        length = len(list(run))
        layers = str(layer) if length == 1 else f"{layer}-{layer + length - 1}"
        words.append(f"{layers}: {count}")
        layer += length
    return "\n".join(words)


def paired_ratio(dense: Sequence[float], pruned: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of dense over pruned, pair by pair."""
    ratios = [d / p for d, p in zip(dense, pruned, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def spread(ratio: tuple[float, float, float]) -> str:
    """A paired ratio with its spread: "1.52x as fast (1.48-1.60)"."""
    return "{:.2f}x as fast ({:.2f}-{:.2f})".format(*ratio)


def table(rows: Sequence[Sequence[str]]) -> Table:
    """Rows of (what, dense, pruned, beside each other), the header first."""
    header, *body = rows
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        grid.add_column(name, overflow="fold", no_wrap=number in (0, 3), min_width=12 if number in (1, 2) else None)
    for row in body:
        grid.add_row(*(Text(cell) for cell in row))  # Text: square brackets in an answer are no markup
    return grid
