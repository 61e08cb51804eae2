"""FastV: keep the visual tokens that the last prompt token attends to.

An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models
(Chen et al., ECCV 2024), https://arxiv.org/abs/2403.06764
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods.base import Keep, Method, best, check_choice, check_keep, kept
from foveate.pruning.view import Selection, View


@dataclass(frozen=True)
class FastV(Method):
    """Before one layer, keep the visual tokens that get the most attention from the last prompt token.

    Score of token v: mean over heads of A[last, v] in layer `layer - 1`.

    Attributes:
        layer: the first layer without the dropped tokens (published: 2 for LLaVA-1.5-7B, 3 for 13B).
        keep: fraction (or count) of the visual tokens kept, or the `Share` of the score that they carry.
        rows: "last" is the released code; "all" is the paper's text, what the token receives from all other
            tokens.
    """

    layer: int = 2
    keep: Keep = 0.5
    rows: Literal["last", "all"] = "last"

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "An Image is Worth 1/2 Tokens After Layer 2 (ECCV 2024)"
    url: ClassVar[str] = "https://arxiv.org/abs/2403.06764"
    reads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_keep("keep", self.keep)
        check_choice("rows", self.rows, ("last", "all"))

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Tensor | Selection:
        if self.rows == "last":
            score = view.attention.last().mean(1)  # (B, M)
        else:
            score = view.attention.received(view.layout.real, view.counts.real, itself=False)
        return best(view, score, self.keep)

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, kept(self.keep, visual))]

    def scored(self, visual: Sequence[int], instruction: int, prompt: int) -> dict[int, int]:
        return {self.layer - 1: 1 if self.rows == "last" else prompt}
