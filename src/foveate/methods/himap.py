"""HiMAP: prune twice, by what the instruction reads from the image and then by what the image reads from itself.

Lifting the Veil on Visual Information Flow in MLLMs: Unlocking Pathways to Faster Inference
(Yin et al., CVPR 2025), https://arxiv.org/abs/2503.13108
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods.base import Keep, Method, best, check_choice, check_keep, kept
from foveate.pruning.view import Selection, View


@dataclass(frozen=True)
class HiMAP(Method):
    """Keep what the instruction attends to in a shallow layer, then what the kept visual tokens attend to deeper down.

    Shallow score of v: sum over instruction rows i of A[i, v] in layer `layer1 - 1`. Deep score of v: sum over kept
    visual rows i of A[i, v] in layer `layer2 - 1`. A is the mean over heads.

    Attributes:
        layer1, keep1: where the first cut is, and the fraction (or count) of the visual tokens it keeps, or the
            `Share` of the score that they carry; `keep2` likewise.
        layer2, keep2: where the second cut is (published: 8 for short answers, 15 for open ones), and the fraction
            (or count) of the survivors it keeps.
        deep: "receives" is the released code and the paper's sentence, the attention that v gets; "sends" is Eq. 9 as
            printed, the attention that v pays to the kept visual tokens.
        causal_normalised: divide what v receives by the number of kept visual rows that can see it, since under a
            causal mask early tokens are summed over more rows.
    """

    layer1: int = 2
    keep1: Keep = 0.5
    layer2: int = 8
    keep2: Keep = 0.25
    deep: Literal["receives", "sends"] = "receives"
    causal_normalised: bool = False

    name: ClassVar[str] = "himap"
    paper: ClassVar[str] = "Lifting the Veil on Visual Information Flow in MLLMs (CVPR 2025)"
    url: ClassVar[str] = "https://arxiv.org/abs/2503.13108"
    reads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_keep("keep1", self.keep1)
        check_keep("keep2", self.keep2)
        check_choice("deep", self.deep, ("receives", "sends"))
        for field in ("layer1", "layer2"):
            if not isinstance(getattr(self, field), int):
                raise ValueError(f"{field}={getattr(self, field)!r}: give a whole number, the layer of the cut")
        if self.layer2 <= self.layer1:
            raise ValueError(f"layer2={self.layer2} must come after layer1={self.layer1}")

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer1, self.layer2)

    def decide(self, view: View) -> Tensor | Selection:
        visual, counts, attention = view.visual, view.counts, view.attention
        if view.layer == self.layer1:
            return best(view, attention.received(view.layout.instruction, counts.instruction), self.keep1)
        if self.deep == "sends":
            return best(view, attention.sent(visual, counts.visual, to=visual), self.keep2)
        score = attention.received(visual, counts.visual)  # (B, M)
        if self.causal_normalised:
            readers = visual.flip(1).cumsum(1).flip(1).clamp_min(1)  # (B, M): visual rows from here on
            score = score / readers
        return best(view, score, self.keep2)

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        first = kept(self.keep1, visual)
        return [(self.layer1, first), (self.layer2, kept(self.keep2, first))]

    def scored(self, visual: Sequence[int], instruction: int, prompt: int) -> dict[int, int]:
        return {self.layer1 - 1: instruction, self.layer2 - 1: visual[self.layer2 - 1]}
