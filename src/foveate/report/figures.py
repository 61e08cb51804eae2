"""The benchmark's figures as JSON, and as the points of its picture."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from foveate.bench import Report, Speed, ratio
from foveate.options import settings_of
from foveate.suite.summary import Row, Versus


def as_json(report: Report) -> dict[str, Any]:
    """All figures. Shares are fractions of dense; what could not be had is null."""
    dense = report.speed.get(report.rows[0].setting.name)
    rows = []
    for row in report.rows:
        figures = dataclasses.asdict(dataclasses.replace(row, setting=None))  # type: ignore[arg-type]
        del figures["setting"]
        method = row.setting.method
        fields = {"method": method.name, **settings_of(method)} if method else {"method": "dense"}
        named = {"name": row.setting.name, "point": row.setting.point, "settings": fields}
        cells = figures.pop("cells")
        tasks = {task: {**cells[task], "beats_random": beats(cell.random)} for task, cell in row.cells.items()}
        speed = report.speed.get(row.setting.name)
        timed = None if speed is None or dense is None else speed_json(dense, speed)
        rows.append({**named, **figures, "beats_random": beats(row.random), "tasks": tasks, "speed": timed})
    return without_nan({"plan": report.plan, "rows": rows, "errors": report.errors})


def speed_json(dense: Speed, speed: Speed) -> dict[str, Any]:
    return {
        "first_token_seconds": speed.first,
        "per_token_seconds": speed.each,
        "first_token_dense_over_this": ratio(dense.first, speed.first),
        "per_token_dense_over_this": ratio(dense.each, speed.each),
        "peak_bytes": speed.peak_bytes,
        "kv_cache_bytes": speed.cache_bytes,
    }


def panels(report: Report) -> tuple[dict[str, dict[str, list[tuple[float, float, float, float]]]], str]:
    """The points of the picture, panel by panel, and what their cost is."""
    flops = not math.isnan(report.rows[0].flops)

    def gather(point: Callable[[Row], tuple[float, float, float]]) -> dict[str, list]:
        series: dict[str, list] = {}
        for row in report.rows[1:]:
            cost = row.flops if flops else row.visual
            series.setdefault(row.setting.label, []).append(tuple(100 * x for x in (cost, *point(row))))
        return series

    def of_task(task: str) -> Callable[[Row], tuple[float, float, float]]:
        dense = report.rows[0].cells[task].score

        def point(row: Row) -> tuple[float, float, float]:
            cell = row.cells[task]
            if cell.dense is None:
                return math.nan, math.nan, math.nan
            low, high = cell.dense.interval
            return cell.score / dense, 1 + low / dense, 1 + high / dense

        return point

    found = {"mean over tasks": gather(lambda row: (row.quality, *row.interval))}
    if len(report.rows[0].cells) > 1:
        found |= {task: gather(of_task(task)) for task, cell in report.rows[0].cells.items() if cell.score > 0}
    return found, "exact prefill FLOPs, % of dense" if flops else "layer-averaged visual tokens, % of dense"


def beats(versus: Versus | None) -> bool | None:
    """None for what is not compared with random."""
    return None if versus is None else versus.better


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: without_nan(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(x) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value
