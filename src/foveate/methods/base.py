"""What a method is, and the two small computations that most of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruning.layout import Layout
from foveate.pruning.tap import Edit
from foveate.pruning.view import Decide, View

Keep = float | int


@dataclass(frozen=True)
class Method:
    """A pruning method: a frozen dataclass of its hyper-parameters and a pure decision.

    A new method is one file: a subclass with `cuts` and `decide`. Survivors keep their order and positions; system and
    text tokens are never removed; a float `keep` is a fraction of the visual tokens, an int a count.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    url: ClassVar[str] = ""
    reads: ClassVar[bool] = False  # whether `decide` needs the attention of the layer before

    def cuts(self, layers: int) -> Sequence[int]:
        """The decoder layers, of `layers`, before which `decide` is asked."""
        raise NotImplementedError

    def decide(self, view: View) -> Tensor | None:
        """Which visual tokens enter layer `view.layer`: (B, M) bool (other entries are ignored), or None for all."""
        raise NotImplementedError

    def start(self) -> Decide:
        """The decision for one batch of prompts; a method that remembers something between layers returns its own."""
        return self.decide

    def edited(self, layers: int) -> Sequence[int]:
        """The decoder layers whose attention is edited while the prompt is read."""
        return ()

    def edits(self, layer: int, layout: Layout) -> list[Edit]:
        """How the attention of `layer` is edited."""
        return []

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        """(layer, visual tokens kept from there on) for a prompt of `visual` visual tokens, without running a model."""
        raise NotImplementedError(f"{self.name} does not say what it keeps before it has run: give it a `schedule`")

    def scored(self, layers: int, visual: int, instruction: int, prompt: int) -> dict[int, int]:
        """{layer: attention rows computed there to decide}, for a prompt of `prompt` tokens in all."""
        return {}


def check_keep(name: str, keep: Keep) -> None:
    """Refuse what is neither a fraction in [0, 1] nor a count."""
    count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0
    if not count and not (isinstance(keep, float) and 0.0 <= keep <= 1.0):
        raise ValueError(
            f"{name}={keep!r}: give the fraction of visual tokens to keep, 0.0 to 1.0, or a count as an int"
        )


def kept(keep: Keep, total: int) -> int:
    """How many of `total` tokens `keep` means: `round(keep * total)` for a fraction (half to even), at most all."""
    return min(keep, total) if isinstance(keep, int) else round(keep * total)


def highest(score: Tensor, among: Tensor, keep: Keep) -> Tensor:
    """The highest-scoring tokens of each row, earlier ones first among equals.

    Args:
        score: (B, M). among: (B, M) bool, the tokens that compete. keep: how many of each row's.

    Returns:
        (B, M) bool.
    """
    count = torch.tensor([[kept(keep, total)] for total in among.sum(1).tolist()], device=among.device)  # (B, 1)
    order = score.masked_fill(~among | score.isnan(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    return among & (order.argsort(dim=1) < count)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not one of {', '.join(map(repr, choices))}")
