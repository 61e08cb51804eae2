"""VisiPruner: visual tokens as idle sinks in shallow layers, a few critical ones in the middle, none in deep layers.

VisiPruner: Decoding Discontinuous Cross-Modal Dynamics for Efficient Multimodal LLMs
(Fan et al., EMNLP 2025), https://arxiv.org/abs/2510.17205
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.methods.base import Method, check_choice
from foveate.pruning.edits import Edit
from foveate.pruning.layout import Layout
from foveate.pruning.view import Decide, View

STAGES = ("shallow", "middle", "deep")


@dataclass(frozen=True)
class VisiPruner(Method):
    """Text ignores the image in shallow layers, a middle layer picks the critical tokens, deep layers drop even those.

    Per sample, with O the last prompt row's attention output and c_i the part of it that comes from visual token i:
    shallow (layers < `shallow`): instruction rows get nothing from visual columns, and nothing is renormalised. Middle
    (from layer `shallow + 1`): the first layer where any cos(O - c_i, O) < `fire` is the filter, and tokens with
    ||c_i|| > `influence` are kept from the next layer on. Deep: a later layer counts if all kept tokens have
    cos(O - c_i, O) >= `exit`; once `exit_count` have counted, the rest is dropped before the next layer.

    The defaults are the released code's, thresholds for LLaVA-1.5-7B; they are absolute and differ between models.

    Attributes:
        stages: which of the three run.
        shallow: the number of shallow layers.
        fire, influence, exit, exit_count: see above.
        consecutive: the layers that count have to be consecutive, as in the paper (the code accumulates).
        first_layer: layer 0, where visual rows get nothing from visual columns: "merge" gives the instruction rows'
            whole visual attention to the first visual token (code for 7B), "halve" takes the first half of the visual
            tokens from them (code for 13B).
        self_attention: visual rows of layers 1 .. `shallow` - 1 attend to each other (code); False as in the paper.
    """

    stages: tuple[str, ...] = STAGES
    shallow: int = 6
    fire: float = 0.995
    influence: float = 0.2
    exit: float = 0.999
    exit_count: int = 2
    consecutive: bool = False
    first_layer: Literal["merge", "halve"] = "merge"
    self_attention: bool = True

    name: ClassVar[str] = "visipruner"
    paper: ClassVar[str] = "VisiPruner: Decoding Discontinuous Cross-Modal Dynamics (EMNLP 2025)"
    url: ClassVar[str] = "https://arxiv.org/abs/2510.17205"
    reads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("first_layer", self.first_layer, ("merge", "halve"))
        if isinstance(self.stages, str):
            raise ValueError(f"stages={self.stages!r}: give a tuple, such as ({self.stages!r},)")
        for stage in self.stages:
            check_choice("stages", stage, STAGES)
        for field, least in (("shallow", 0), ("exit_count", 1)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{field}={value!r}: give a whole number, {least} or more")
        for field in ("fire", "influence", "exit"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{field}={value!r}: give a finite number")

    def edited(self, layers: int) -> range:
        return range(self.shallow if "shallow" in self.stages else 0)

    def edits(self, layer: int, layout: Layout) -> list[Edit]:
        visual, text = layout.visual, layout.instruction
        if layer > 0:
            return [Edit(text, visual)] if self.self_attention else [Edit(text | visual, visual)]
        if self.first_layer == "merge":
            return [Edit(visual, visual), Edit(text, visual, into=visual.int().argmax(1))]
        total, place = visual.sum(1, keepdim=True), visual.cumsum(1)  # (B, 1), (B, M) from 1 on
        return [Edit(visual, visual), Edit(text, visual & (place <= total // 2))]

    def cuts(self, layers: int) -> range:
        if "middle" not in self.stages and "deep" not in self.stages:
            return range(0)
        if self.shallow + 2 >= layers:
            raise ValueError(
                f"shallow={self.shallow} leaves none of {layers} layers to the middle and deep stages: "
                f"choose {max(layers - 3, 0)} or less, or stages=('shallow',)"
            )
        return range(self.shallow + 2, layers)

    def start(self) -> Decide:
        return Search(self)

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        """The typical outcome published for LLaVA-1.5-7B, in proportion: filter layer 15 of 32, 10 kept, exit at 24."""
        cuts = []
        if "middle" in self.stages:
            cuts.append((round(layers * 16 / 32), min(10, visual)))
        if "deep" in self.stages:
            cuts.append((round(layers * 24 / 32), 0))
        return cuts

    def scored(self, visual: Sequence[int], instruction: int, prompt: int) -> dict[int, int]:
        return {layer - 1: 3 for layer in self.cuts(len(visual))}  # the last row, and two products with the values


class Search:
    """The middle and deep stages of one batch of prompts; `fired` and `counted` are per sample."""

    def __init__(self, method: VisiPruner):
        self.method = method
        self.fired: Tensor | None = None  # (B,) bool: the filter layer lies behind
        self.counted: Tensor | None = None  # (B,) layers in which no kept token mattered

    def __call__(self, view: View) -> Tensor | None:
        method, visual = self.method, view.visual
        if self.fired is None or self.counted is None:
            self.fired = torch.full_like(visual[:, 0], "middle" not in method.stages)
            self.counted = torch.zeros_like(visual[:, 0], dtype=torch.long)
        cosine, norm = view.attention.influence()  # (B, M) each

        idle = (~visual | (cosine >= method.exit)).all(1)  # (B,)
        counts = idle & self.fired
        self.counted = self.counted + counts
        if method.consecutive:
            self.counted = self.counted * counts
        leave = self.fired & (self.counted >= method.exit_count) & ("deep" in method.stages)

        fires = ~self.fired & (visual & (cosine < method.fire)).any(1)
        self.fired = self.fired | fires
        keep = visual & (~fires[:, None] | (norm > method.influence))
        return keep & ~leave[:, None]
