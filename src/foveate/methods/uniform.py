"""Uniform: a baseline that keeps evenly spaced visual tokens, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.methods.base import Keep, Method, at_places, check_keep, kept
from foveate.pruning.view import Selection, View


@dataclass(frozen=True)
class Uniform(Method):
    """Before one layer, keep evenly spaced visual tokens: of n, those at the centres of k equal cells.

    Attributes:
        layer: the first layer without the dropped tokens.
        keep: fraction (or count) of the visual tokens kept.
    """

    layer: int = 2
    keep: Keep = 0.5

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "baseline"
    url: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_keep("keep", self.keep, scores=False)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Selection:
        totals = view.counts.visual
        counts = [kept(self.keep, total) for total in totals]
        spaced = torch.zeros(len(totals), max(totals), dtype=torch.bool)  # (B, n), by place in the image
        for row, total, count in zip(spaced, totals, counts, strict=True):
            row[(2 * torch.arange(count) + 1) * total // max(2 * count, 1)] = True  # floor((i + 1/2) n / k)
        return Selection(at_places(view.visual, spaced), counts)

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, kept(self.keep, visual))]
