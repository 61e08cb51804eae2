"""What a method sees before a decoder layer, and what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from foveate.pruning.attention import Attention
from foveate.pruning.edits import Edit
from foveate.pruning.layout import Layout


@dataclass(frozen=True)
class Counts:
    """How many tokens of each kind every row holds, known without asking the device."""

    visual: list[int]
    system: list[int]
    instruction: list[int]

    @classmethod
    def of(cls, layout: Layout) -> Counts:
        """Of a layout that lies on the host; one on a device has to be waited for."""
        visual, system, instruction = (
            mask.sum(1).tolist() for mask in (layout.visual, layout.system, layout.instruction)
        )
        return cls(visual, system, instruction)

    @property
    def real(self) -> list[int]:
        """Tokens that are neither padding nor filler."""
        return [sum(row) for row in zip(self.visual, self.system, self.instruction, strict=True)]

    def keeping(self, visual: list[int]) -> Counts:
        """What is left when each row keeps so many visual tokens."""
        return replace(self, visual=visual)


class Selection(NamedTuple):
    """A decision whose size is known, so that nobody has to wait for the device to learn it.

    mask: (B, M) bool, the visual tokens to keep. counts: how many of each row's these are.
    """

    mask: Tensor
    counts: list[int]


@dataclass(frozen=True, eq=False)
class View:
    """The M survivors of a batch of prompts on their way into decoder layer `layer`.

    Attributes:
        layout: which survivor is visual, system, instruction or (none of them) padding.
        counts: how many of each there are in every row.
        position: (B, M) long, the columns of `input_ids` they came from.
        hidden: (B, M, D), the hidden states.
        seen: what layer `layer - 1` computed over them; None for a method that does not read attention.
    """

    layer: int
    layout: Layout
    counts: Counts
    position: Tensor
    hidden: Tensor
    seen: Attention | None

    @property
    def visual(self) -> Tensor:
        """Which survivors are visual tokens, (B, M) bool."""
        return self.layout.visual

    @property
    def attention(self) -> Attention:
        """What layer `layer - 1` computed over the survivors.

        Raises:
            ValueError: the method did not ask to read attention.
        """
        if self.seen is None:
            raise ValueError("attention is shown to methods that set `reads = True` only")
        return self.seen


class Decide(Protocol):
    """Answers a view with the visual tokens to keep: (B, M) bool (other entries are ignored), a `Selection`, or None
    for all. A bare mask makes the engine wait for the device to count it."""

    def __call__(self, view: View) -> Tensor | Selection | None: ...


class Pruner(Protocol):
    """What the engine asks of a method. `foveate.methods.Method` has the defaults."""

    name: ClassVar[str]
    reads: ClassVar[bool]  # whether views carry the attention of the layer before

    def cuts(self, layers: int) -> Sequence[int]:
        """The layers, of `layers`, before which to decide."""
        ...

    def start(self) -> Decide:
        """A decision function for one batch of prompts; whatever it has to remember between layers is its own."""
        ...

    def edited(self, layers: int) -> Sequence[int]:
        """The layers whose attention is edited while the prompt is read."""
        ...

    def edits(self, layer: int, layout: Layout) -> list[Edit]:
        """How the attention of `layer` is edited."""
        ...
