"""Budgets that follow the picture and the question: keep what carries a share of the score, however many that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The smallest set of visual tokens that together have this share of the score.

    Given in place of a fraction or a count, as in `FastV(keep=Share(0.9))`: a picture or a question on which the score
    is spread out keeps many tokens, one on which it is concentrated few. Counted for each sample and each stage, among
    the visual tokens still there; where no token has any score, all stay.

    Attributes:
        share: above 0; 1.0 keeps everything.
    """

    share: float

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not number or not 0.0 < self.share <= 1.0:
            raise ValueError(f"a share of the score is above 0 and at most 1, not {self.share!r}")


def carrying(score: Tensor, among: Tensor, share: float) -> Tensor:
    """The smallest set of each row's tokens that has `share` of the row's score, earlier tokens first among equals.

    Args:
        score: (B, M), not negative; what is no number counts as nothing. among: (B, M) bool, the tokens that compete.

    Returns:
        (B, M) bool.
    """
    amount = score.double().nan_to_num(0.0).clamp_min(0.0).masked_fill(~among, -1.0)  # below all that compete
    order = amount.argsort(dim=1, descending=True, stable=True)
    reached = amount.gather(1, order).clamp_min(0.0).cumsum(1)  # (B, M)
    total = reached[:, -1:]
    count = (reached < share * total).sum(1, keepdim=True) + 1  # (B, 1)
    everything = (total == 0) | torch.tensor(share >= 1.0, device=score.device)
    return among & ((order.argsort(dim=1) < count) | everything)
