"""Which token of a prompt is what: visual, system, instruction or padding, row by row of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.cut import take


@dataclass(frozen=True, eq=False)
class Layout:
    """The kinds of token in a batch of sequences: three disjoint (B, L) bool masks, all False on padding and filler.

    Attributes:
        visual: holds an image or video feature.
        system: text before the row's first visual token (all the text of a row without any).
        instruction: text after the row's first visual token, so text that can look at the picture.
    """

    visual: Tensor
    system: Tensor
    instruction: Tensor

    @classmethod
    def of(cls, visual: Tensor, real: Tensor) -> Layout:
        """From where the visual tokens are and which tokens are not padding, both (B, L) bool."""
        visual = visual & real
        seen = visual.cumsum(1) > 0
        text = real & ~visual
        return cls(visual, text & ~seen, text & seen)

    @property
    def real(self) -> Tensor:
        """Every token that is not padding or filler, (B, L) bool."""
        return self.visual | self.system | self.instruction

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return Layout(self.visual.to(device), self.system.to(device), self.instruction.to(device))

    def take(self, index: Tensor, valid: Tensor | None) -> Layout:
        """The layout of the survivors at columns `index` (B, M); False wherever `valid` (B, M) is."""
        masks = (take(mask, index, 1) for mask in (self.visual, self.system, self.instruction))
        return Layout(*(mask if valid is None else mask & valid for mask in masks))


def padding_of(mask: Tensor | dict[str, Tensor | None] | None) -> Tensor | None:
    """The (B, kv) bool mask of real tokens behind any form of attention mask that a decoder is given, or None.

    A 4-D mask is read at its last query, which sees every key that is not padding (in a dict: that of full attention).
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if mask is None:
        return None
    if mask.ndim == 4:
        mask = mask[:, 0, -1]  # (B, kv)
        return mask if mask.dtype == torch.bool else mask == 0
    return mask.bool()
