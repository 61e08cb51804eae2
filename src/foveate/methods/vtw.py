"""VTW: withdraw every visual token at one layer.

Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference
(Lin et al., AAAI 2025), https://arxiv.org/abs/2405.05803
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.methods.base import Method
from foveate.pruning.view import Selection, View


@dataclass(frozen=True)
class VTW(Method):
    """Before one layer, drop all visual tokens.

    Attributes:
        layer: the first layer without visual tokens (published: 16 of 32 for LLaVA-1.5-7B, 20 of 40 for 13B, chosen as
            the first whose next-token distribution stays within a KL threshold of the dense model's). Reading text in
            pictures needs a much later layer.
    """

    layer: int = 16

    name: ClassVar[str] = "vtw"
    paper: ClassVar[str] = "Boosting MLLMs with Visual Tokens Withdrawal for Rapid Inference (AAAI 2025)"
    url: ClassVar[str] = "https://arxiv.org/abs/2405.05803"

    def cuts(self, layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def decide(self, view: View) -> Selection:
        return Selection(torch.zeros_like(view.visual), [0] * len(view.visual))

    def schedule(self, layers: int, visual: int) -> list[tuple[int, int]]:
        return [(self.layer, 0)]
