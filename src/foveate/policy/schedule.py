"""A free schedule: at each stage a method of its own, at any layers, as an ordinary method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from foveate.methods import HiMAP
from foveate.methods.base import Keep, Method, best, check_choice, check_keep, kept
from foveate.pruning.edits import Edit
from foveate.pruning.layout import Layout
from foveate.pruning.view import Decide, Selection, View

SCORES = ("last", "instruction", "visual", "influence")


@dataclass(frozen=True)
class Cut(Method):
    """One stage: before one layer, keep the visual tokens with the highest score in the layer before.

    Attributes:
        layer: the first layer without the dropped tokens.
        keep: fraction or count of the visual tokens kept, or the `Share` of the score that they carry.
        score: what a token gets from the last prompt row ("last", FastV's), from all instruction rows
            ("instruction", HiMAP's first) or from the visual tokens ("visual", HiMAP's second); or how long its part of
            the last row's output is ("influence", VisiPruner's ||c_i||).
    """

    layer: int = 2
    keep: Keep = 0.5
    score: Literal["last", "instruction", "visual", "influence"] = "last"

    name: ClassVar[str] = "cut"
    paper: ClassVar[str] = "one stage of a schedule"
    reads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_keep("keep", self.keep)
        check_choice("score", self.score, SCORES)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Tensor | Selection | None:
        match self.score:
            case "last":
                return best(view, view.attention.last().mean(1), self.keep)
            case "influence":
                return best(view, view.attention.influence()[1], self.keep)
            case "instruction":
                return HiMAP(layer1=self.layer, keep1=self.keep, layer2=self.layer + 1).decide(view)
            case _:
                return HiMAP(layer1=self.layer - 1, layer2=self.layer, keep2=self.keep).decide(view)

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, kept(self.keep, visual))]

    def scored(self, visual: Sequence[int], instruction: int, prompt: int) -> dict[int, int]:
        read = self.layer - 1
        rows = {"last": 1, "influence": 3, "instruction": instruction, "visual": visual[read]}
        return {read: rows[self.score]}


@dataclass(frozen=True)
class Dense(Method):
    """Drop nothing: what a policy does with prompts that are better left alone."""

    name: ClassVar[str] = "dense"

    def cuts(self, layers: int) -> tuple[int, ...]:
        return ()

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return []


@dataclass(frozen=True)
class Schedule(Method):
    """Several methods, one after the other: each decides before its own layers, on what those before it have left.

    Attributes:
        parts: the methods, in the order of their layers, as in `Schedule((Cut(2, 0.5), FastV(5, 0.2), VTW(9)))`.
    """

    parts: tuple[Method, ...] = ()

    name: ClassVar[str] = "schedule"
    paper: ClassVar[str] = "methods stage by stage"

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Method) for part in self.parts):
            raise ValueError("a schedule needs a tuple of methods, such as (Cut(2, 0.5), VTW(9))")
        if any(isinstance(part, Schedule) for part in self.parts):
            raise ValueError("a schedule has no schedules in it: give their parts")

    @property
    def reads(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any part needs the attention of the layer before."""
        return any(part.reads for part in self.parts)

    def cuts(self, layers: int) -> list[int]:
        """Of all parts. Raises ValueError where they are not in order."""
        found = [layer for part in self.parts for layer in part.cuts(layers)]
        if any(second <= first for first, second in pairwise(found)):
            raise ValueError(f"the parts of a schedule cut before layers {found}: their layers have to ascend")
        return found

    def start(self) -> Decide:
        return Turns(self)

    def edited(self, layers: int) -> list[int]:
        return sorted({layer for part in self.parts for layer in part.edited(layers)})

    def edits(self, layer: int, layout: Layout) -> list[Edit]:
        return [edit for part in self.parts if layer in part.edited(layer + 1) for edit in part.edits(layer, layout)]

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for part in self.parts:
            found += part.schedule(layers, found[-1][1] if found else visual)
        return found

    def scored(self, visual: Sequence[int], instruction: int, prompt: int) -> dict[int, int]:
        return {layer: rows for part in self.parts for layer, rows in part.scored(visual, instruction, prompt).items()}


class Turns:
    """The decisions of one batch: each part's own, from its first layer to the next part's."""

    def __init__(self, schedule: Schedule):
        begins = [(part.cuts(UNBOUNDED), part) for part in schedule.parts]
        self.turns = [(layers[0], part.start()) for layers, part in begins if layers]

    def __call__(self, view: View) -> Tensor | Selection | None:
        decide = next(decide for first, decide in reversed(self.turns) if first <= view.layer)
        return decide(view)


UNBOUNDED = 10**6  # more layers than any decoder has: where a part begins does not depend on how many there are
