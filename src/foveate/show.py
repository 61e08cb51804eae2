"""Results of the commands as tables, JSON and pictures."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
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

from foveate.ask import Result, Side
from foveate.cost import Comparison, Cost, comparison_rows
from foveate.cost.tables import si
from foveate.estimate import COUNTS, formula_of
from foveate.measure import TIMED_TOKENS
from foveate.methods import Method
from foveate.options import settings_of
from foveate.report.overlay import overlay
from foveate.report.text import duration, layer_ranges, paired_ratio, spread

Setting = Mapping[str, Any]  # what a question was asked with: model, image, device ...


def ask_rows(result: Result, method: Method) -> list[Sequence[str]]:
    """Both answers and their costs, the header first."""
    dense, pruned = result.dense, result.pruned
    unit = COUNTS[formula_of(method)][0]
    return [
        ("", "dense", method.name, ""),
        ("answer", dense.answer or "(nothing)", pruned.answer or "(nothing)", ""),
        share("prefill, exact", dense.flops, pruned.flops, "FLOPs"),
        share("prefill, as published", dense.published, pruned.published, unit),
        speed("time to first token", dense.first, pruned.first),
        speed("time per token after", dense.each, pruned.each),
        share("KV cache of the prompt", dense.cache_bytes, pruned.cache_bytes, "B"),
        ("tokens in layers", layer_ranges(dense.tokens), layer_ranges(pruned.tokens), ""),
    ]


def share(what: str, dense: int | None, pruned: int | None, unit: str) -> Sequence[str]:
    """A row of two amounts; None is an architecture without a cost model."""
    if dense is None or pruned is None:
        return what, "not modelled", "not modelled", ""
    return what, si(dense, unit), si(pruned, unit), f"{pruned / dense:.1%} of dense"


def speed(what: str, dense: Sequence[float], pruned: Sequence[float]) -> Sequence[str]:
    """A row of two times, and how many times as fast the pruned one is, pair by pair."""
    return what, duration(median(dense)), duration(median(pruned)), spread(paired_ratio(dense, pruned))


def ask_notes(result: Result, method: Method, setting: Setting) -> list[str]:
    """How the figures were made."""
    guard = (
        "the guard let the prompt run again without pruning" if result.again else "the guard trusted the pruned answer"
    )
    return [
        *([] if result.again is None else [guard]),
        "exact: the whole prompt, vision tower and scoring included, two FLOPs a multiply-add",
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
        "ran_again": result.again,
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
    if picture_format(path) not in Image.SAVE:
        raise ValueError(f"--overlay {path}: give a picture file, such as overlay.png")


def picture_format(path: Path) -> str | None:
    """Pillow's name of the format that the ending of a file name stands for; None if it stands for none."""
    Image.init()
    return Image.EXTENSION.get(path.suffix.lower())


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


def cost_rows(comparison: Comparison, as_published: bool) -> list[Sequence[str]]:
    """What a prompt and its answer cost, the header first; as published, by the paper's formula and nothing else."""
    dense, pruned = comparison.dense, comparison.pruned
    if as_published:
        unit = COUNTS[comparison.formula][0]
        return [("", "dense", "pruned", ""), share("prefill, as published", dense.published, pruned.published, unit)]
    tokens = ("tokens in layers", layer_ranges(dense.tokens), layer_ranges(pruned.tokens), "")
    return [*comparison_rows(comparison), tokens]


def cost_json(cost: Cost) -> dict[str, Any]:
    """All figures of one side of a comparison; the units stand in the names."""
    return {
        "tokens_per_layer": cost.tokens,
        "prefill_flops_exact": {**dataclasses.asdict(cost.prefill), "total": cost.prefill.total},
        "decode_flops_exact": cost.decode.total,
        "kv_cache_bytes": cost.kv_bytes,
        "prefill_published": cost.published,
    }


def cost_notes(method: Method, visual: int, text: int, images: Any) -> list[str]:
    """What was assumed."""
    formula = formula_of(method)
    notes = [f"a prompt of {visual} visual and {text} text tokens", f"{formula}'s formula: {COUNTS[formula][1]}"]
    if images == 0:
        notes.append("without the vision tower: give --image-size for what the tower sees")
    if method.name == "visipruner":
        notes.append(
            "visipruner decides while it runs: this is the typical outcome of its paper, in proportion to the depth"
        )
    return notes
