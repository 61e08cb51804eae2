"""The tables of the speed bench: what was measured of each cell, and what was aimed at beside what was found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = [
    "",
    "prefill",
    "ideal",
    "measured",
    "of the ideal saving",
    "and last layer",
    "scoring",
    "per token",
    "of dense",
    "peak",
    "",
    "KV",
]
TOKENS = 128  # of a whole request
SAVED = {576: 0.95, 2880: 0.97}  # of the ideal saving, aimed at, by visual tokens
AIMED = ("fastv", "himap", "vtw")  # at these savings


@dataclass(frozen=True)
class Measured:
    """What is known of one cell, all times in seconds.

    Attributes:
        rounds: of the prefill, what each of its runs took; decode: of each setting, what every step took.
        memory: of each setting, the bytes of a prefill's peak and of its KV cache; empty if not measured.
    """

    name: str
    title: str
    visual: int
    methods: list[str]
    rounds: list[dict[str, float]]
    decode: dict[str, list[float]]
    memory: dict[str, Any]

    def speedup(self, name: str) -> list[float]:
        return [row["dense"] / row[name] for row in self.rounds]

    def saved(self, name: str, run: str) -> list[float]:
        """Of what the ideal of a method saves, what one of its runs does."""
        return [(row["dense"] - row[run]) / (row["dense"] - row[f"{name} ideal"]) for row in self.rounds]

    def scoring(self, name: str) -> float:
        """A method's decision, as a share of dense prefill."""
        return statistics.median(r[f"{name} scoring"] / r["dense"] for r in self.rounds if f"{name} scoring" in r)

    def step(self, name: str) -> float:
        return statistics.median(self.decode[name])

    def step_over(self, name: str) -> float:
        return statistics.median(a / b for a, b in zip(self.decode[name], self.decode["dense"], strict=True))

    def peak_over(self, name: str) -> float:
        return self.memory[name]["peak"] / self.memory["dense"]["peak"] - 1

    def request(self, name: str) -> float:
        """How many times as fast as dense a prompt and the tokens after it are."""

        def whole(which: str) -> float:
            return statistics.median(row[which] for row in self.rounds) + TOKENS * self.step(which)

        return whole("dense") / whole(name)

    def table(self) -> str:
        return markdown(HEAD, [self.row(name) for name in ("dense", *self.methods)])

    def row(self, name: str) -> list[str]:
        prefill = seconds(statistics.median(row[name] for row in self.rounds))
        held = self.memory[name]
        sizes = f"{held['peak'] / 2**20:.0f} MiB", f"{held['kv'] / 2**20:.0f} MiB"
        step = f"{self.step(name) * 1000:.1f} ms"
        if name == "dense":
            return [name, prefill, "", "", "", "", "", step, "", sizes[0], "", sizes[1]]
        return [
            name,
            prefill,
            f"{statistics.median(self.speedup(f'{name} ideal')):.2f}x",
            spread(self.speedup(name)).replace(" ", "x ", 1),
            spread([100 * x for x in self.saved(name, f"{name} whole")]).replace(" ", " % ", 1),
            f"{100 * statistics.median(self.saved(name, name)):.1f} %",
            f"{self.scoring(name):.2%}",
            step,
            f"{self.step_over(name):.3f}",
            sizes[0],
            f"{self.peak_over(name):+.0%}",
            sizes[1],
        ]


def targets(cells: Sequence[Measured]) -> Iterator[list[str]]:
    """What was aimed at, what was found in these cells, and where it was missed."""

    def row(aim: str, found: dict[str, float], met: Any, form: str) -> list[str]:
        text = ", ".join(f"{name} {form.format(value)}" for name, value in found.items())
        missed = [name for name, value in found.items() if not met(value)]
        return [aim, text, f"missed: {', '.join(missed)}" if missed else "met"]

    for cell in cells:
        if (aim := SAVED.get(cell.visual)) is not None:
            found = {n: statistics.median(cell.saved(n, f"{n} whole")) for n in AIMED if n in cell.methods}
            yield row(f"{cell.name}: at least {aim:.0%} of the ideal saving", found, lambda x, a=aim: x >= a, "{:.1%}")
    for cell in cells:
        found = {name: cell.scoring(name) for name in cell.methods}
        yield row(f"{cell.name}: scoring at most 2 % of dense prefill", found, lambda x: x <= 0.02, "{:.2%}")
    largest = {c.name: max(map(c.peak_over, c.methods)) for c in cells}
    yield row("peak of any method never above dense", largest, lambda x: x <= 0, "{:+.0%}")
    himap = {c.name: c.peak_over("himap") for c in cells if c.visual == 8192 and "himap" in c.methods}
    if himap:
        yield row("peak of HiMAP at 8,192 tokens at least 30 % below dense", himap, lambda x: x <= -0.3, "{:+.0%}")
    slowest = {c.name: max(map(c.step_over, c.methods)) for c in cells}
    yield row("decode of any method never slower than dense", slowest, lambda x: x <= 1, "{:.3f}")
    seen = [cell for cell in cells if "visipruner" in cell.methods]
    prefill = {c.name: statistics.median(c.speedup("visipruner")) for c in seen}
    request = {c.name: c.request("visipruner") for c in seen}
    if seen:
        yield row("prefill of VisiPruner faster than dense", prefill, lambda x: x > 1, "{:.2f}x")
        yield row(f"and with {TOKENS} tokens after it", request, lambda x: x > 1, "{:.2f}x")


def report(cells: Sequence[Measured]) -> str:
    head = ["aimed at", "found", ""]
    return "\n\n".join([*(f"{c.title}\n\n{c.table()}" for c in cells), markdown(head, list(targets(cells)))])


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    middle = statistics.median(values)
    digits = 2 if abs(middle) < 20 else 1
    if len(values) < 2:
        return f"{middle:.{digits}f} (one round)"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def fill(path: Path, text: str, name: str = "tables") -> None:
    """Put text into a page, between its two marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text()
    before, after = page.index(begin) + len(begin), page.index(end)
    path.write_text(f"{page[:before]}\n\n{text}\n\n{page[after:]}")
