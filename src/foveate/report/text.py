"""Numbers into words and tables for a terminal. Knows results as plain values; runs nothing."""

import statistics
from collections.abc import Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text


def three_figures(value: float) -> str:
    """A number from 0.001 on with three significant figures: 12.34 -> "12.3"."""
    return f"{value:#.3g}".rstrip(".")


def amount(value: float, unit: str) -> str:
    """A count with its SI prefix and three figures: 2986076000000 FLOPs -> "2.99 TFLOPs"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{three_figures(value / size)} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def memory(count: float) -> str:
    """Bytes in binary units: 1572864 -> "1.50 MiB"."""
    for prefix, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{three_figures(count / size)} {prefix}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds, or milliseconds below one: 0.0123 -> "12.3 ms"."""
    return f"{three_figures(seconds)} s" if seconds >= 1 else f"{three_figures(seconds * 1000)} ms"


def layer_ranges(counts: Sequence[int]) -> str:
    """Counts per layer, equal neighbours joined, a line for each: [9, 9, 5] -> "0-1: 9" and "2: 5"."""
    words, layer = [], 0
    for count, run in groupby(counts):
        length = len(list(run))
        layers = str(layer) if length == 1 else f"{layer}-{layer + length - 1}"
        words.append(f"{layers}: {count}")
        layer += length
    return "\n".join(words)


def times_less(dense: float, pruned: float) -> str:
    """How many times smaller the pruned figure is."""
    return f"{dense / pruned:.2f}x" if pruned else "-"


def paired_ratio(dense: Sequence[float], pruned: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of dense over pruned, pair by pair."""
    ratios = [d / p for d, p in zip(dense, pruned, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def spread(ratio: tuple[float, float, float]) -> str:
    """A paired ratio with its spread: "1.52x (1.48 to 1.60)"."""
    return "{:.2f}x ({:.2f} to {:.2f})".format(*ratio)


def comparison(rows: Sequence[tuple[str, str, str, str]], name: str) -> Table:
    """Dense and pruned side by side: (what, dense, pruned, dense over pruned)."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("dense", overflow="fold")
    table.add_column(name, overflow="fold")
    table.add_column(f"dense / {name}", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: an answer's square brackets are no markup
    return table
