"""The benchmark's report: tables for the terminal and Markdown, JSON, and the points of its picture."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from rich.table import Table
from rich.text import Text

from foveate.bench import Report, ratio
from foveate.cost.tables import markdown, si
from foveate.report.text import duration
from foveate.suite.metrics import METRICS
from foveate.suite.plan import BASELINES
from foveate.suite.summary import Cell, Row, Versus, average
from foveate.suite.timing import HOW_MEMORY

MARK = "*"
WIDEST = 400  # characters that a table may take, whatever the terminal: a figure cut short would be another figure
Lines = list[Sequence[str]]  # a table, the header first
EQUAL = {"keep": "layer-averaged visual tokens", "flops": "exact prefill FLOPs"}


def quality_table(report: Report) -> Lines:
    """Scores of every setting on every task, grouped by cost."""
    tasks = list(report.rows[0].cells)
    table: Lines = [("", "tokens", "FLOPs", *tasks, "of dense", "95 %")]
    for row in report.rows:
        scores = (scored(cell) + mark(cell.random) for cell in row.cells.values())
        whole = percent(row.quality) + mark(row.random)
        table.append((row.setting.name, percent(row.visual), percent(row.flops), *scores, whole, between(row)))
    return table


def point_tables(report: Report) -> dict[str, Lines]:
    """For each point of the dial all figures, a column for each setting: what fits a terminal."""
    dense, *others = report.rows
    tables = {}
    for point in dict.fromkeys(row.setting.point for row in others):
        rows = [dense, *sorted((row for row in others if row.setting.point == point), key=baselines_first)]
        columns = [column(row, report) for row in rows]
        table: Lines = [("", *(row.setting.label for row in rows))]
        table += [(title, *(figures[title] for figures in columns)) for title in columns[0]]
        tables[title_of(point, report)] = table
    return tables


def column(row: Row, report: Report) -> dict[str, str]:
    """All figures of a setting."""
    figures = {
        "visual tokens, %": percent(row.visual),
        "exact FLOPs, %": percent(row.flops),
        **{task: scored(cell) + mark(cell.random) for task, cell in row.cells.items()},
        "of dense, %": percent(row.quality) + mark(row.random),
        "  95 %": between(row),
        "first-token KL": number(mean_of(row, "kl"), 3),
        "top-1 agreement, %": percent(mean_of(row, "top1")),
        "same answer, %": percent(mean_of(row, "same")),
    }
    if report.speed:
        dense, own = report.speed[report.rows[0].setting.name], report.speed[row.setting.name]
        first, each = ratio(dense.first, own.first), ratio(dense.each, own.each)
        figures |= {
            "first token, faster": f"{first['median']:.2f}x",
            "  first, middle 80 %": f"{first['low']:.2f}-{first['high']:.2f}",
            "each token, faster": f"{each['median']:.2f}x",
            "  each, middle 80 %": f"{each['low']:.2f}-{each['high']:.2f}",
            "peak memory": si(own.peak_bytes, "B"),
            "KV cache": si(own.cache_bytes, "B"),
        }
    if report.errors:
        figures["failed"] = str(row.errors)
    return figures


def title_of(point: str, report: Report) -> str:
    return f"{point} of the {EQUAL[report.plan['equal']]}" if point.endswith("%") else point


def baselines_first(row: Row) -> bool:
    return row.setting.label not in BASELINES


def difference_table(report: Report) -> Lines:
    """Score minus the dense score on the same questions, with its 95 % interval."""
    table: Lines = [("", *report.rows[0].cells)]
    for row in report.rows[1:]:
        table.append((row.setting.name, *(difference(cell) for cell in row.cells.values())))
    return table


def fidelity_table(report: Report) -> Lines:
    """How much the answers stay those of the dense model: means over tasks."""
    table: Lines = [("", "first-token KL, nats", "top-1 agreement", "same answer", "failed")]
    for row in report.rows[1:]:
        agreement = (percent(mean_of(row, what)) for what in ("top1", "same"))
        table.append((row.setting.name, number(mean_of(row, "kl"), 3), *agreement, str(row.errors)))
    return table


def speed_table(report: Report) -> Lines:
    """Time and memory of every setting beside the dense model's; empty if nothing was timed."""
    if not report.speed:
        return []
    dense = report.speed[report.rows[0].setting.name]
    table: Lines = [("", "first token", "times as fast", "per token after", "times as fast", "peak memory", "KV cache")]
    for row in report.rows:
        speed = report.speed[row.setting.name]
        table.append(
            (
                row.setting.name,
                duration(median(speed.first)),
                times(dense.first, speed.first),
                duration(median(speed.each)),
                times(dense.each, speed.each),
                si(speed.peak_bytes, "B"),
                si(speed.cache_bytes, "B"),
            )
        )
    return table


def pope_tables(report: Report) -> dict[str, Lines]:
    """POPE's figures of each yes/no task, by kind of negatives."""
    tables = {}
    for task, cell in report.rows[0].cells.items():
        if not cell.pope:
            continue
        table: Lines = [("", "negatives", *next(iter(cell.pope.values())))]
        for row in report.rows:
            for kind, figures in row.cells[task].pope.items():
                table.append((row.setting.name, kind, *map(percent, figures.values())))
        tables[task] = table
    return tables


def other_metrics(report: Report) -> Lines:
    """The metrics that are reported beside a task's score; empty if no task has any."""
    extra = [(task, m) for task, cell in report.rows[0].cells.items() for m in list(cell.metrics)[1:]]
    if not extra:
        return []
    table: Lines = [("", *(f"{task}, {METRICS[metric].title}" for task, metric in extra))]
    for row in report.rows:
        table.append((row.setting.name, *(scaled(row.cells[task].metrics[metric], metric) for task, metric in extra)))
    return table


def notes(report: Report) -> list[str]:
    """What the tables show and how it was made."""
    plan = report.plan
    scores = [f"{task}: {METRICS[metric_of(cell)].title}" for task, cell in report.rows[0].cells.items()]
    found = [
        f"{plan['model']}, {plan['dtype']}, {plan['attention']}, on {plan['device']}, CPU threads: {plan['threads']}; "
        f"{len(report.samples)} questions, seed {plan['seed']}",
        "; ".join(scores),
        f"settings of a group are brought to the same {EQUAL[plan['equal']]}; tokens and FLOPs are what was used, "
        "shares of dense: layer-averaged visual tokens, and exact FLOPs of the prompt with its vision tower",
        f"marked {MARK}: does not beat random pruning at the same cost (paired bootstrap, 95 %)",
        "of dense: mean over tasks of the share of the dense score",
    ]
    if report.speed:
        found.append(
            f"times: medians over {plan['rounds']} interleaved rounds on {plan['timed_prompts']} prompts, one by one; "
            f"times as fast: pair by pair with dense, with the middle 80 % of the pairs; {HOW_MEMORY}"
        )
    if report.errors:
        reasons = Counter(record["error"] for record in report.errors)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        found.append(f"failed: {len(report.errors)} answers, left out of every mean: {listed}")
    return found


def as_markdown(report: Report) -> str:
    """All tables."""
    settings = [("", "setting"), *((row.setting.name, str(row.setting.method or "dense")) for row in report.rows)]
    parts = {
        "Quality": quality_table(report),
        "Difference to dense": difference_table(report),
        "Fidelity to dense": fidelity_table(report),
        "Time and memory": speed_table(report),
        **{f"{task}: yes and no, %": table for task, table in pope_tables(report).items()},
        "Other metrics": other_metrics(report),
        "Settings": settings,
    }
    text = ["# Visual token pruning at equal cost", "\n".join(f"- {note}" for note in notes(report))]
    text += [f"## {title}\n\n{markdown(table)}" for title, table in parts.items() if table]
    return "\n\n".join(text) + "\n"


def rich_table(lines: Lines) -> Table:
    """A table for the terminal, as wide as it has to be."""
    header, *body = lines
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for place, name in enumerate(header):
        widest = max(len(row[place]) for row in lines)
        table.add_column(name, justify="right" if place else "left", min_width=widest)
    for row in body:
        table.add_row(*map(Text, row))
    return table


def metric_of(cell: Cell) -> str:
    return next(iter(cell.metrics))


def scored(cell: Cell) -> str:
    return scaled(cell.score, metric_of(cell))


def scaled(score: float, metric: str) -> str:
    scale = METRICS[metric].scale
    return number(score * scale, 1 if scale > 1 else 2)


def mean_of(row: Row, what: str) -> float:
    """Of a figure of the cells, over tasks."""
    return average([getattr(cell, what) for cell in row.cells.values()])


def difference(cell: Cell) -> str:
    """-2.1 [-4.0, -0.2]"""
    if cell.dense is None:
        return "-"
    scale = METRICS[metric_of(cell)].scale
    mean, low, high = (x * scale for x in (cell.dense.difference, *cell.dense.interval))
    digits = 1 if scale > 1 else 2
    if math.isnan(mean):
        return "-"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def between(row: Row) -> str:
    low, high = row.interval
    return "-" if math.isnan(low) else f"{percent(low)}-{percent(high)}"


def times(dense: Sequence[float], other: Sequence[float]) -> str:
    found = ratio(dense, other)
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def percent(value: float) -> str:
    return number(100 * value, 1)


def number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def mark(versus: Versus | None) -> str:
    return MARK if versus is not None and not versus.better else ""
