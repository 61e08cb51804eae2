"""What a method is, and the two small computations that most of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.methods.share import Share, carrying
from foveate.pruning.edits import Edit
from foveate.pruning.layout import Layout
from foveate.pruning.view import Decide, Selection, View

Keep = float | int | Share


@dataclass(frozen=True)
class Method:
    """A pruning method: a frozen dataclass of its hyper-parameters and a pure decision.

    A new method is one file: a subclass with `cuts` and `decide`. Survivors keep their order and positions; system and
    text tokens are never removed; a float `keep` is a fraction of the visual tokens, an int a count, a `Share` as many
    as carry that part of the score.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    url: ClassVar[str] = ""
    reads: ClassVar[bool] = False  # whether `decide` needs the attention of the layer before

    def cuts(self, layers: int) -> Sequence[int]:
        """The decoder layers, of `layers`, before which `decide` is asked."""
        raise NotImplementedError

    def decide(self, view: View) -> Tensor | Selection | None:
        """Which visual tokens enter layer `view.layer`: (B, M) bool (other entries are ignored), or None for all.

        A `Selection`, as `best` makes it, also says how many they are, and spares a wait for the device.
        """
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

    def scored(self, visual: Sequence[int], instruction: int, prompt: int) -> dict[int, int]:
        """{layer: attention rows computed there to decide}, for a prompt of `prompt` tokens with `visual[layer]` visual
        ones in each layer and `instruction` text tokens after the first of them."""
        return {}


def check_keep(name: str, keep: Keep, scores: bool = True) -> None:
    """Refuse what is neither a fraction in [0, 1] nor a count nor, for a method with scores, a share of them."""
    if isinstance(keep, Share):
        if not scores:
            raise ValueError(f"{name}={keep!r}: there is no score to take a share of; give a fraction or a count")
        return
    count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0
    if not count and not (isinstance(keep, float) and 0.0 <= keep <= 1.0):
        raise ValueError(
            f"{name}={keep!r}: give the fraction of visual tokens to keep, 0.0 to 1.0, or a count as an int"
        )


def kept(keep: Keep, total: int) -> int:
    """How many of `total` tokens `keep` means: `round(keep * total)` for a fraction (half to even), at most all.

    Raises NotImplementedError for a share of the score, which is another number for every prompt.
    """
    if isinstance(keep, Share):
        raise NotImplementedError(
            f"how many tokens carry {keep.share:g} of the score is known only when a prompt is read: "
            "run the model (foveate ask, foveate bench), or give a fraction or a count"
        )
    return min(keep, total) if isinstance(keep, int) else round(keep * total)


def highest(score: Tensor, among: Tensor, counts: Sequence[int]) -> Tensor:
    """The highest-scoring tokens of each row, earlier ones first among equals.

    Args:
        score: (B, M), what is no number comes last. among: (B, M) bool, the tokens that compete.
        counts: how many of each row's to take, at most as many as compete there.

    Returns:
        (B, M) bool.
    """
    least = torch.finfo(score.dtype).min
    score = score.nan_to_num(nan=least, neginf=least).masked_fill(~among, -torch.inf)  # below all that compete
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (B, M)
    return rank < column(counts, rank.device)


def best(view: View, score: Tensor, keep: Keep) -> Tensor | Selection:
    """The visual tokens of each row with the highest `score` (B, M), as many as `keep` says."""
    if isinstance(keep, Share):
        return carrying(score, view.visual, keep.share)
    counts = [kept(keep, total) for total in view.counts.visual]
    return Selection(highest(score, view.visual, counts), counts)


def at_places(visual: Tensor, chosen: Tensor) -> Tensor:
    """The visual tokens (B, M) that are the `chosen` ones (B, n) of their row: its first, its second and so on."""
    place = (visual.cumsum(1) - 1).clamp_min(0)  # (B, M)
    return visual & chosen.to(visual.device, non_blocking=True).gather(1, place)


def column(counts: Sequence[int], device: torch.device) -> Tensor | int:
    """Numbers of the host, one a row, to compare a (B, M) tensor with; nothing waits for the device."""
    if len(set(counts)) == 1:
        return counts[0]
    return torch.tensor(counts).to(device, non_blocking=True)[:, None]  # (B, 1)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not one of {', '.join(map(repr, choices))}")
