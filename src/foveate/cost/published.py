"""FLOPs as papers compute them.

All three formulas count a decoder with as many key as query heads; none counts the vision tower, the LM head, decode
or the method's own scoring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .shapes import DecoderShape, decoder_shape
from .tokens import Schedule, tokens_per_layer


@dataclass(frozen=True)
class PaperShape:
    """All that the published formulas look at."""

    layers: int
    hidden: int
    ffn_width: int


def himap(n: int, d: int, m: int) -> int:
    """Multiply-adds of one layer: HiMAP (arXiv 2503.13108) Eq. 10, FastV (arXiv 2403.06764) Eq. 5; two FFN matrices."""
    return 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m


def visipruner(n: int, d: int, m: int) -> int:
    """Multiply-adds of one layer, VisiPruner (arXiv 2510.17205): as HiMAP's with the third FFN matrix."""
    return 4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m


def vtw(n: int, d: int, m: int) -> int:
    """FLOPs of one layer, VTW (arXiv 2405.05803): twice the multiply-adds; meant for the whole prompt (pass `text`)."""
    return 2 * visipruner(n, d, m)


FORMULAS: dict[str, Callable[[int, int, int], int]] = {"himap": himap, "visipruner": visipruner, "vtw": vtw}


def published(shape: Any, visual: int, schedule: Schedule = (), formula: str = "himap", text: int = 0) -> int:
    """A paper's formula summed over layers, in that paper's unit (himap and visipruner: multiply-adds, vtw: FLOPs).

    Args:
        shape: a config, a `DecoderShape` or a `PaperShape`.
        visual: visual tokens of the prompt.
        schedule: [(layer, kept), ...]: before that layer all but `kept` visual tokens are dropped.
        formula: "himap" (also FastV's), "visipruner" or "vtw".
        text: system and text tokens to count in every layer; HiMAP, FastV and VisiPruner count none.
    """
    if formula not in FORMULAS:
        raise ValueError(f"Unknown formula {formula!r}; choose one of {', '.join(FORMULAS)}.")
    s = shape if isinstance(shape, PaperShape | DecoderShape) else decoder_shape(shape)
    counts = tokens_per_layer(s.layers, text + visual, visual, schedule)
    return sum(FORMULAS[formula](n, s.hidden, s.ffn_width) for n in counts)
