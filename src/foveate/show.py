"""Results of the commands as tables, JSON and pictures."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Group
from rich.table import Table
from rich.text import Text

from foveate.ask import TIMED_TOKENS, Result, Side
from foveate.estimate import COUNTS, Estimate, formula_of
from foveate.methods import Method
from foveate.options import settings_of
from foveate.report.overlay import overlay
from foveate.report.text import (
    amount,
    comparison,
    duration,
    layer_ranges,
    memory,
    paired_ratio,
    spread,
    times_less,
)

Setting = Mapping[str, Any]  # what a question was asked with: model, image, device ...
Row = tuple[str, str, str, str]

PARTS = {  # of `cost.Flops`, as a table names them
    "vision tower": "vision",
    "projector": "projector",
    "q, k, v, o projections": "projections",
    "attention": "attention",
    "FFN": "ffn",
    "LM head": "head",
    "the method's scoring": "scoring",
    "prefill, exact": "total",
}


def ask_table(result: Result, method: Method) -> Table:
    """Both answers and their costs, side by side."""
    dense, pruned = result.dense, result.pruned
    unit, _ = COUNTS[formula_of(method)]
    rows: list[Row] = [
        ("answer", dense.answer or "(nothing)", pruned.answer or "(nothing)", ""),
        compared("prefill, exact", dense.flops, pruned.flops, flops),
        compared("prefill, as published", dense.published, pruned.published, lambda n: amount(n, unit)),
    ]
    for what, a, b in (
        ("time to first token", dense.first, pruned.first),
        ("per output token", dense.each, pruned.each),
    ):
        rows.append((what, duration(median(a)), duration(median(b)), spread(paired_ratio(a, b))))
    rows.append(compared("KV cache of the prompt", dense.cache_bytes, pruned.cache_bytes, memory))
    return comparison([*rows, *token_rows(dense.tokens, pruned.tokens)], method.name)


def ask_notes(result: Result, method: Method, setting: Setting) -> list[str]:
    """How the figures were made."""
    return [
        f"as published: {COUNTS[formula_of(method)][1]}",
        f"times: median of {len(result.dense.first)} interleaved pairs of runs, {TIMED_TOKENS} tokens each, on "
        f"{setting['device']}, {setting['dtype']}, {setting['attention']}, CPU threads: {setting['threads']}; "
        "the ratio is pair by pair, with its smallest and largest value",
    ]


def ask_json(result: Result, method: Method, setting: Setting, overlay_file: str | None) -> dict[str, Any]:
    """All figures of one question; the units stand in the names."""
    ratio = {
        "first_token": paired_ratio(result.dense.first, result.pruned.first),
        "per_token": paired_ratio(result.dense.each, result.pruned.each),
    }
    return {
        **setting,
        "published_formula": formula_of(method),
        "visual_tokens": result.visual,
        "stages": [{"layer": layer, "kept": np.flatnonzero(kept).tolist()} for layer, kept in result.stages],
        "dense": side_json(result.dense),
        "pruned": side_json(result.pruned),
        "dense_over_pruned": {
            what: dict(zip(("median", "smallest", "largest"), values, strict=True)) for what, values in ratio.items()
        },
        "timed_tokens": TIMED_TOKENS,
        "overlay": overlay_file,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def side_json(side: Side) -> dict[str, Any]:
    return {
        "answer": side.answer,
        "tokens_per_layer": side.tokens,
        "prefill_flops_exact": side.flops,
        "prefill_flops_published": side.published,
        "kv_cache_bytes": side.cache_bytes,
        "first_token_seconds": side.first,
        "per_token_seconds": side.each,
    }


def draw(picture: Image.Image, grid: tuple[int, int], result: Result, method: Method, question: str) -> Image.Image:
    """The picture as the model was shown it, then once for each stage with what it dropped dimmed."""
    panels = [(f"{result.visual} visual tokens", np.full(grid, True))]
    for layer, kept in result.stages:
        panels.append((f"layer {layer}: {kept.sum()} of {result.visual} kept", np.reshape(kept, grid)))
    answers = {"dense": result.dense.answer, method.name: result.pruned.answer}
    lines = [question, *(f"{who}: {' '.join(answer.split())}" for who, answer in answers.items())]
    return overlay(picture, panels, lines)


def check_file_type(path: Path) -> None:
    """Refuse a file name whose ending is no picture format that can be written."""
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--overlay {path}: give a picture file, such as overlay.png")


def methods_table(methods: Iterable[type[Method]]) -> Table:
    """Every method: its rule, its paper, its fields with their defaults."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    for method in methods:
        rule = (method.__doc__ or "").strip().splitlines()[0]
        lines = [
            Text(rule),
            Text(f"{method.paper} {method.url}".strip(), style="dim"),
            Text("  ".join(f"{field}={value!r}" for field, value in settings_of(method()).items()), style="cyan"),
        ]
        table.add_row(Text(method.name, style="bold"), Group(*lines))
    return table


def cost_table(dense: Estimate, pruned: Estimate, method: Method, steps: int, as_published: bool) -> Table:
    """The cost of one prompt, dense and pruned: exact by parts, or one figure by the paper's formula."""
    unit, _ = COUNTS[formula_of(method)]
    rows = []
    if as_published:
        rows.append(compared("prefill, as published", dense.published, pruned.published, lambda n: amount(n, unit)))
    else:
        for what, part in PARTS.items():
            a, b = getattr(dense.prefill, part), getattr(pruned.prefill, part)
            rows.append(compared(what, a, b, flops))
        if steps:
            rows.append(compared(f"{steps} decode steps", dense.decode, pruned.decode, flops))
    rows.append(compared("KV cache of the prompt", dense.cache_bytes, pruned.cache_bytes, memory))
    return comparison([*rows, *token_rows(dense.tokens, pruned.tokens)], method.name)


def cost_json(estimate: Estimate) -> dict[str, Any]:
    """All figures of one prompt; the units stand in the names."""
    return {
        "tokens_per_layer": estimate.tokens,
        "prefill_flops_exact": {**dataclasses.asdict(estimate.prefill), "total": estimate.prefill.total},
        "decode_flops_exact": estimate.decode,
        "kv_cache_bytes": estimate.cache_bytes,
        "prefill_published": estimate.published,
    }


def cost_notes(method: Method, visual: int, text: int, images: Any, as_published: bool) -> list[str]:
    """What was assumed."""
    notes = [f"a prompt of {visual} visual and {text} text tokens"]
    if as_published:
        notes.append(f"as published: {COUNTS[formula_of(method)][1]}")
    elif images == 0:
        notes.append("without the vision tower: give --image-size for what the tower sees")
    if method.name == "visipruner":
        notes.append("visipruner decides while it runs: these are the layers and counts that its paper reports")
    return notes


def compared(what: str, dense: float | None, pruned: float | None, write: Callable[[float], str]) -> Row:
    """One row of a comparison; None is an architecture without a cost model."""
    if dense is None or pruned is None:
        return what, "not modelled", "not modelled", ""
    return what, write(dense), write(pruned), times_less(dense, pruned) if dense else ""


def token_rows(dense: Sequence[int], pruned: Sequence[int]) -> list[Row]:
    """How many tokens the layers run on."""
    return [
        compared("tokens, mean of layers", sum(dense) / len(dense), sum(pruned) / len(pruned), lambda n: f"{n:.1f}"),
        ("tokens in layers", layer_ranges(dense), layer_ranges(pruned), ""),
    ]


def flops(count: float) -> str:
    return amount(count, "FLOPs")
