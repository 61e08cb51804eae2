"""Random: the baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.methods.base import Keep, Method, at_places, check_keep, kept
from foveate.pruning.view import Selection, View


@dataclass(frozen=True)
class Random(Method):
    """Before one layer, keep visual tokens drawn at random.

    The draw depends only on the seed and on how many visual tokens a sample has, not on its place in a batch.

    Attributes:
        layer: the first layer without the dropped tokens.
        keep: fraction (or count) of the visual tokens kept.
        seed: of the draw.
    """

    layer: int = 2
    keep: Keep = 0.5
    seed: int = 0

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"
    url: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_keep("keep", self.keep, scores=False)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r}: give a whole number from 0 to 2**63 - 1")

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Selection:
        totals = view.counts.visual
        counts = [kept(self.keep, total) for total in totals]
        drawn = torch.zeros(len(totals), max(totals), dtype=torch.bool)  # (B, n), by place in the image
        for row, total, count in zip(drawn, totals, counts, strict=True):
            generator = torch.Generator().manual_seed(self.seed)
            row[torch.randperm(total, generator=generator)[:count]] = True
        return Selection(at_places(view.visual, drawn), counts)

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, kept(self.keep, visual))]
