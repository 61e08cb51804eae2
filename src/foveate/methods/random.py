"""Random: the baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.base import Keep, Method, check_keep, kept
from foveate.pruning.view import View


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
        check_keep("keep", self.keep)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Tensor:
        keep = torch.zeros_like(view.visual)
        for row, visual in zip(keep, view.visual, strict=True):
            columns = visual.nonzero().flatten()  # (n,)
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randperm(len(columns), generator=generator)[: kept(self.keep, len(columns))]
            row[columns[drawn.to(columns.device)]] = True
        return keep

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, kept(self.keep, visual))]
