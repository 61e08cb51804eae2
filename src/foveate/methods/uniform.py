"""Uniform: a baseline that keeps evenly spaced visual tokens, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.base import Keep, Method, check_keep, kept
from foveate.pruning.view import View


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
        check_keep("keep", self.keep)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Tensor:
        keep = torch.zeros_like(view.visual)
        for row, visual in zip(keep, view.visual, strict=True):
            columns = visual.nonzero().flatten()  # (n,)
            total, count = len(columns), kept(self.keep, len(columns))
            cells = (
                (2 * torch.arange(count, device=columns.device) + 1) * total // max(2 * count, 1)
            )  # floor((i + 1/2) n / k)
            row[columns[cells]] = True
        return keep

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, kept(self.keep, visual))]
