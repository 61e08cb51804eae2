"""What survives of a prompt, from which layer on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from foveate.pruning.layout import Layout


@dataclass(frozen=True, eq=False)
class Stage:
    """What decoder layers from `layer` on hold of a prompt, until the next stage.

    Attributes:
        layer: the first layer that runs on these survivors only.
        index: (B, M) long, the surviving columns of the prompt, ascending.
        valid: (B, M) bool, False on the filler that makes rows of different counts one rectangle; None: no filler.
        layout: which survivor is what, (B, M) masks.
    """

    layer: int
    index: Tensor
    valid: Tensor | None
    layout: Layout

    @property
    def kept(self) -> list[Tensor]:
        """Per sample the surviving visual positions, as sorted columns of `input_ids`."""
        return [index[visual] for index, visual in zip(self.index, self.layout.visual, strict=True)]

    @property
    def last(self) -> Stage:
        """The last token of every prompt alone."""
        end = torch.full_like(self.index[:, -1:], self.index.shape[1] - 1)  # (B, 1)
        return Stage(self.layer, self.index[:, -1:], None, self.layout.take(end, None))

    def real(self, padding: Tensor | None, length: int, new: int) -> Tensor | None:
        """(B, M + new) bool: which keys of these layers are real, once `new` tokens followed a prompt of `length`."""
        if self.valid is None:
            return None
        after = self.valid.new_ones((len(self.valid), new)) if padding is None else padding[:, length:]
        return torch.cat([self.valid, after.to(self.valid.device)], dim=1)


@dataclass(eq=False)
class Prompt:
    """A prompt with visual tokens and the stages it went through.

    It belongs to the KV cache that holds the prompt, and is kept there: copies of the cache carry it along.
    """

    layout: Layout
    stages: list[Stage] = field(default_factory=list)
    scored: dict[int, int] = field(default_factory=dict)  # layer -> attention rows computed for the method
    last_alone: bool = False  # of the last layer, all but the last token's rows was left out

    @property
    def length(self) -> int:
        return self.layout.visual.shape[1]

    def hold(self, cache: Cache) -> None:
        """Let this cache be known to hold the prompt."""
        vars(cache)["_foveate_prompt"] = self

    @staticmethod
    def held_by(cache: Cache | None) -> Prompt | None:
        """The pruned prompt that a cache holds, if any."""
        return getattr(cache, "_foveate_prompt", None)

    @staticmethod
    def forget(cache: Cache) -> None:
        """The cache was emptied for another prompt."""
        vars(cache).pop("_foveate_prompt", None)
