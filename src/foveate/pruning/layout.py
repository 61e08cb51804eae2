"""Which token of a prompt is what: visual (of which image), system, instruction, answer or padding, row by row."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from foveate.pruning.cut import take

GROUPS = ("system", "image", "instruction", "answer")  # in the order in which a sequence has them


@dataclass(frozen=True, eq=False)
class Layout:
    """The kinds of token in a batch of sequences: four disjoint (B, L) bool masks, all False on padding and filler.

    Attributes:
        visual: holds an image or video feature.
        system: text before the row's first visual token (all the text of a row without any).
        instruction: text after the row's first visual token, so text that can look at the picture.
        answer: text that answers the instruction; a prompt has none.
        image: (B, L) long, which image of the row a visual token belongs to, from 0; -1 elsewhere. Visual tokens with
            nothing between them are one image.
    """

    visual: Tensor
    system: Tensor
    instruction: Tensor
    answer: Tensor
    image: Tensor

    @classmethod
    def of(cls, visual: Tensor, real: Tensor, answer: Tensor | None = None) -> Layout:
        """From where the visual tokens are, which tokens are not padding and which answer, each (B, L) bool."""
        visual = visual & real
        answer = torch.zeros_like(visual) if answer is None else answer & real & ~visual
        seen = visual.cumsum(1) > 0
        text = real & ~visual & ~answer
        begins = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        image = torch.where(visual, begins.cumsum(1) - 1, -1)
        return cls(visual, text & ~seen, text & seen, answer, image)

    @property
    def real(self) -> Tensor:
        """Every token that is not padding or filler, (B, L) bool."""
        return self.visual | self.system | self.instruction | self.answer

    def group(self, name: str) -> Tensor:
        """The tokens called `name`, (B, L) bool: one of `GROUPS`, "image 0" (and so on) for a single image, or "all".

        Raises:
            ValueError: there is no such group.
        """
        masks = dict(zip(GROUPS, (self.system, self.visual, self.instruction, self.answer), strict=True))
        if name in masks:
            return masks[name]
        if name == "all":
            return self.real
        kind, _, number = name.partition(" ")
        if kind == "image" and number.isdigit():
            return self.image == int(number)
        raise ValueError(f"there is no group {name!r}: choose {', '.join(GROUPS)}, all, or one image: image 0")

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return Layout(*(getattr(self, field.name).to(device) for field in fields(self)))

    def take(self, index: Tensor, valid: Tensor | None) -> Layout:
        """The layout of the survivors at columns `index` (B, M); False wherever `valid` (B, M) is."""
        left = Layout(*(take(getattr(self, field.name), index, 1) for field in fields(self)))
        if valid is None:
            return left
        visual, system, instruction, answer = (
            mask & valid for mask in (left.visual, left.system, left.instruction, left.answer)
        )
        return Layout(visual, system, instruction, answer, left.image.where(valid, -1))


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
