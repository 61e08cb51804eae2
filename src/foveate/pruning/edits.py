"""Edits of attention after the softmax, and the output of a layer under them where its probabilities exist nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from foveate.pruning.attention import allowed
from foveate.pruning.cut import pack, take

MAX_BANDS = 8  # of edited rows that are worth a call of attention each


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of attention after the softmax, nothing renormalised: some rows get nothing from some columns.

    Attributes:
        rows, columns: (B, M) bool. Entries of `columns` in `rows` count as zero.
        into: (B,) long, a column that receives what its row lost; None: the mass is lost.
    """

    rows: Tensor
    columns: Tensor
    into: Tensor | None = None

    def followed(self, later: int) -> Edit:
        """The same with `later` more tokens behind, which it does not touch."""
        return Edit(pad(self.rows, (0, later)), pad(self.columns, (0, later)), self.into) if later else self

    def values(self, value: Tensor) -> Tensor:
        """The value vectors (B, H, M, d) that the rows really read: the edit of A is one of V, A V' = A' V."""
        columns = self.columns[:, None, :, None]
        if self.into is None:
            return torch.where(columns, value.new_zeros(()), value)  # faster than masked_fill, which copies first
        return torch.where(columns, take(value, self.into[:, None], 2), value)

    def weights(self, weights: Tensor) -> Tensor:
        """The edit of the probabilities (B, H, M, M) themselves."""
        lost = self.rows[:, None, :, None] & self.columns[:, None, None]  # (B, 1, M, M)
        kept = weights.masked_fill(lost, 0.0)
        if self.into is None:
            return kept
        target = self.into[:, None, None, None].expand(*weights.shape[:3], 1)
        return kept.scatter_add(-1, target, (weights - kept).sum(-1, keepdim=True))


@dataclass(frozen=True)
class Plan:
    """How the rows of a layer fall under its edits, worked out on the host.

    Attributes:
        bands: (first row, row after the last, number of the edit or None), in order and without gaps; None if the
            prompts of the batch differ in this.
        start: in no prompt is a row from here on left unedited.
        counts: for each edit the number of its rows in each prompt.
    """

    bands: list[tuple[int, int, int | None]] | None
    start: int
    counts: list[list[int]]

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> Plan:
        """From edits that lie on the host; of two for the same row the later one holds."""
        under = torch.full(edits[0].rows.shape, -1)  # (B, M): the number of a row's edit
        for number, edit in enumerate(edits):
            under[edit.rows] = number
        start = under.shape[1] - int((under >= 0).all(0).flip(0).cumprod(0).sum())
        counts = [edit.rows.sum(1).tolist() for edit in edits]
        if (under != under[:1]).any():
            return cls(None, start, counts)
        numbers, sizes = (x.tolist() for x in under[0].unique_consecutive(return_counts=True))
        ends = list(accumulate(sizes))
        bands = [(e - n, e, i if i >= 0 else None) for e, n, i in zip(ends, sizes, numbers, strict=True)]
        if numbers[0] < 0 and len(bands) > 1 and not edits[numbers[1]].columns[:, : ends[0]].any():
            bands[:2] = [(0, ends[1], numbers[1])]  # rows before the edit do not see what it takes away
        return cls(bands if len(bands) <= MAX_BANDS else None, start, counts)


def alike(edits: Sequence[Edit], others: Sequence[Edit]) -> bool:
    """Whether they take the same columns from the same rows."""
    return len(edits) == len(others) and all(
        torch.equal(a.rows, b.rows) and torch.equal(a.columns, b.columns) for a, b in zip(edits, others, strict=True)
    )


def edited_eager(weights: Tensor, value: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
    """Output (B, M, H, d) and probabilities (B, H, M, M) of a layer whose probabilities are there to be edited."""
    for edit in edits:
        weights = edit.weights(weights)
    value = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)  # (B, H, M, d)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def edited(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    edits: Sequence[Edit],
    plan: Plan,
    scaling: float,
    first: Callable[..., Tensor],
) -> Tensor:
    """The output (B, M, H, d) of a layer whose probabilities exist nowhere and are edited through the values.

    No row sees what follows it, so `first(n, values)`, the user's kernel on the first n tokens, serves the rows at the
    front. Edited rows behind others go through torch's scaled_dot_product_attention.
    """
    batch, heads, length, _ = query.shape
    key, value = key[:, :, :length], value[:, :, :length]  # a static cache is longer

    def some(rows: Tensor, keys: int, value: Tensor, mask: Tensor) -> Tensor:
        """Queries (B, H, R, d) on the first keys, under a mask (B, 1, R, keys): (B, R, H, d)."""
        groups = heads // key.shape[1]  # no kernel of CUDA's takes groups and a mask
        k, v = (x[:, :, :keys].repeat_interleave(groups, 1) if groups > 1 else x[:, :, :keys] for x in (key, value))
        return scaled_dot_product_attention(rows, k, v, mask, scale=scaling).transpose(1, 2)

    if plan.bands and mask is None:
        parts = []
        for start, end, number in plan.bands:
            values = value if number is None else edits[number].values(value)
            if start == 0:
                parts.append(first(end, values))
            else:
                band = torch.arange(start, end, device=query.device)[None]
                parts.append(some(query[:, :, start:end], end, values, allowed(None, band, end)))
        return torch.cat(parts, dim=1)
    output = query.new_zeros(batch, length, heads, value.shape[-1])  # (B, M, H, d)
    if plan.start:
        output[:, : plan.start] = first(plan.start)
    for edit, counts in zip(edits, plan.counts, strict=True):
        index, valid = pack(edit.rows, counts)  # (B, R)
        rows = some(take(query, index, 2), length, edit.values(value), allowed(mask, index, length))
        if valid is not None:
            rows = torch.where(valid[..., None, None], rows, take(output, index, 1))
        output.scatter_(1, index[..., None, None].expand_as(rows), rows)
    return output
