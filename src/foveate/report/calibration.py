"""The report of a calibration: tables for the terminal and Markdown, JSON, and the marks of its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from foveate.calibration.calibrate import Point, Report
from foveate.cost.tables import markdown
from foveate.methods import Method, Share
from foveate.policy.entry import Entry, Figure
from foveate.policy.policy import as_json
from foveate.policy.schedule import Dense, Schedule
from foveate.report.pareto import Mark

Lines = list[Sequence[str]]  # a table, the header first


def points_table(report: Report) -> Lines:
    """What was chosen, the front and the published defaults, on quoted samples."""
    table: Lines = [("", "decoder FLOPs", "with tower", "same answer", "95 %", "KL", "first token", "what it does")]
    for point in report.points:
        m = point.measured
        speed = "" if m.speed is None else f"{m.speed.mean:.2f}x"
        cost = percent(m.flops.mean), percent(m.whole.mean)
        does = "an entry for each kind of question" if point.name == "by kind" else words(point.method)
        table.append((point.name, *cost, *agreement(m.agreement), f"{m.kl.mean:.3f}", speed, does))
    return table


def kinds_table(report: Report) -> Lines:
    """Each kind of question: its entry beside the published defaults, as agreement at a cost."""
    names = list(dict.fromkeys(point.name for points in report.by_kind.values() for point in points))
    table: Lines = [("kind", "samples", *names, "what it does")]
    for kind, points in report.by_kind.items():
        cells = (f"{percent(p.measured.agreement.mean)} at {percent(p.measured.flops.mean)}" for p in points)
        entry = report.policy.entries[kind]
        table.append((kind, str(points[0].measured.samples), *cells, words(points[0].method) + guarded(entry)))
    return table


def guarded(entry: Entry) -> str:
    if entry.guard is None:
        return ""
    return f"; again below {entry.guard.threshold:.2f} ({percent(entry.guard.rerun)} of prompts)"


def words(method: Method) -> str:
    """A method in a line: "instruction 0.4 before 2, last 0.2 before 5, none from 7"."""
    if isinstance(method, Schedule):
        return ", ".join(words(part) for part in method.parts)
    if isinstance(method, Dense):
        return "nothing is dropped"
    fields = dict(vars(method))
    if method.name == "cut":
        return f"{fields['score']} {keep(fields['keep'])} before {fields['layer']}"
    if method.name == "vtw":
        return f"none from {fields['layer']}"
    told = {name: value for name, value in fields.items() if value != getattr(type(method), name, None)}
    return f"{method.name}({', '.join(f'{name}={keep(value)}' for name, value in (told or fields).items())})"


def keep(value: Any) -> str:
    if isinstance(value, Share):
        return f"{value.share:.3g} of the score"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def notes(report: Report) -> list[str]:
    """How the figures were made."""
    layer, curve = report.withdrawal
    told = "no layer" if layer is None else f"layer {layer}"
    shares = "of dense; decoder FLOPs are exact, with LM head and scoring, as pruned.trace counts them"
    lines = [
        f"figures: {report.points[0].measured.samples} samples that nothing was chosen on; shares are {shares}",
        f"VTW's own search (first mean KL <= {report.request.eta:g} nats): {told}; the smallest KL is {min(curve):.4g}",
        f"{len(report.candidates)} methods were tried, on {report.policy.entry.data['searched']} other samples",
    ]
    if guard := next((entry.guard for entry in report.policy.entries.values() if entry.guard), None):
        share = "in the long run" if guard.fresh is None else f"of the next {guard.fresh}"
        lines.append(
            f"guard: with confidence {guard.confidence:.0%}, at most {guard.alpha:.1%} of the answers {share} differ "
            f"from the dense model's, set on {guard.samples} samples; kinds without pruning are answered dense"
        )
    elif report.request.guard is not None:
        lines.append("guard: no kind of question is worth pruning under this bound: all are answered dense")
    return lines


def as_markdown(report: Report) -> str:
    parts = ["# Calibration", "", *markdown(points_table(report)).splitlines()]
    if len(report.by_kind) > 1:
        parts += ["", "## By kind of question", "", *markdown(kinds_table(report)).splitlines()]
    return "\n".join([*parts, "", *(f"- {note}" for note in notes(report)), ""])


def as_text(report: Report) -> str:
    """All figures as JSON."""
    points = [{"name": p.name, "method": words(p.method), "measured": figures(p)} for p in report.points]
    kinds = {k: [{"name": p.name, "measured": figures(p)} for p in points] for k, points in report.by_kind.items()}
    tried = [
        {"method": words(c.method), "cost": c.cost, "agreement": c.agreement, "kl": c.kl} for c in report.candidates
    ]
    whole = {"policy": as_json(report.policy), "points": points, "by_kind": kinds, "tried": tried}
    return json.dumps({**whole, "withdrawal": report.withdrawal}, indent=1) + "\n"


def figures(point: Point) -> dict[str, Any]:
    m = point.measured
    found = {"flops": m.flops, "whole": m.whole, "agreement": m.agreement, "kl": m.kl, "speed": m.speed}
    return {name: (f.mean, f.low, f.high) for name, f in found.items() if f is not None} | {"samples": m.samples}


def marks(report: Report) -> list[Mark]:
    """The points of the picture."""
    found = []
    for point in report.points:
        m = point.measured
        found_here = point.name == "one for all" or point.name.startswith("at ")
        role = "chosen" if point.chosen else "front" if found_here else "published"
        time = None if m.speed is None else 1 / m.speed.mean
        found.append(Mark(point.name, role, m.flops.mean, time, (m.agreement.mean, m.agreement.low, m.agreement.high)))
    return found


def rich_table(lines: Lines) -> Table:
    """A table for the terminal, as wide as it has to be."""
    header, *body = lines
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, name in enumerate(header):
        widest = max(len(row[place]) for row in lines)
        grid.add_column(name, justify="left" if place in (0, len(header) - 1) else "right", min_width=widest)
    for row in body:
        grid.add_row(*map(Text, row))
    return grid


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def agreement(figure: Figure) -> tuple[str, str]:
    return percent(figure.mean), f"{100 * figure.low:.1f}-{100 * figure.high:.1f}"
