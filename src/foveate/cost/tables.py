"""Tables of costs, as plain rows and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .compare import Comparison
from .flops import Flops
from .printed import Printed

Row = Sequence[str]

PARTS = {
    "vision": "vision tower",
    "projector": "projector",
    "projections": "q, k, v, o projections",
    "attention": "attention",
    "ffn": "FFN",
    "head": "LM head",
    "scoring": "the method's scoring",
}


def si(value: float, unit: str = "FLOPs") -> str:
    """A number with three digits and a decimal prefix: 8.18 TFLOPs."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def comparison_rows(comparison: Comparison) -> list[Row]:
    """Rows (what, dense, pruned, share left) of a comparison, the header first."""
    dense, pruned = comparison.dense, comparison.pruned

    def row(name: str, a: float, b: float, unit: str = "FLOPs") -> Row:
        return name, si(a, unit), si(b, unit), f"{b / a:.1%}" if a else ""

    def parts(a: Flops, b: Flops) -> list[Row]:
        both = [(label, getattr(a, part), getattr(b, part)) for part, label in PARTS.items()]
        return [row(f"  {label}", x, y) for label, x, y in both if x or y]

    average = (dense.layer_average, pruned.layer_average)
    unit = "FLOPs" if comparison.formula == "vtw" else "MACs"
    rows: list[Row] = [("", "dense", "pruned", "left")]
    rows.append(("layer-averaged visual tokens", *(f"{n:.1f}" for n in average), f"{average[1] / average[0]:.1%}"))
    rows.append(row("prefill, exact", dense.prefill.total, pruned.prefill.total))
    rows += parts(dense.prefill, pruned.prefill)
    if dense.decode.total:
        rows.append(row("decode of the answer, exact", dense.decode.total, pruned.decode.total))
    rows.append(row("KV cache", dense.kv_bytes, pruned.kv_bytes, "B"))
    rows.append(row(f"prefill, {comparison.formula}'s formula", dense.published, pruned.published, unit))
    return rows


def published_rows(figures: Sequence[Printed]) -> list[Row]:
    """Rows (paper, model, method, printed, formula, exact, discrepancy) of `published_table()`, header first; tera."""
    rows: list[Row] = [("paper", "model", "method", "printed", "its formula", "exact, 97 text tokens", "discrepancy")]
    for f in figures:
        exact = "" if f.exact is None else f"{f.exact:.2f}"
        rows.append((f.paper, f.model, f.method, f"{f.value:g}", f"{f.computed:.3f}", exact, f.note))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; the first is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
