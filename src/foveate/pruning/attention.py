"""What one attention layer computed, from its queries, keys and values: probabilities and influence of chosen rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from foveate.pruning.cut import pack, take

PART_BYTES = 2**26  # what probabilities, or values in float32, may take at one time
CPU_BYTES = 2**21  # the same on a CPU, which is fast as long as it all stays in its cache
LEAST_ROWS = 32  # of which a product of matrices is worth starting


class Attention:
    """What one attention layer computed over the M survivors of a prompt. Only rows that are asked for exist.

    Attributes:
        query: (B, H, M, d) after norm and rope. key, value: (B, H_kv, M, d).
        output: (B, M, H, d), the heads before the output projection.
        real: (B, M) bool, False on padding and filler.
        scored: rows computed so far; what `influence` does beside is worth two more.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        mask: Tensor | None,
        real: Tensor,
        scaling: float,
    ):
        length = real.shape[1]  # a draft may follow the prompt, and a static cache is longer than both
        self.query, self.output, self.real, self.scaling = query, output, real.to(query.device), scaling
        self.key, self.value = key[:, :, :length], value[:, :, :length]
        self.mask = mask
        self.scored = 0

    def rows(self, index: Tensor) -> Tensor:
        """Attention probabilities of the query rows at `index` (B, R): (B, H, R, M) float32."""
        self.scored += index.shape[1]
        index = index.to(self.query.device)
        return self._rows(index, slice(None), ~allowed(self.mask, index, self.key.shape[2]))

    def _rows(self, index: Tensor, groups: slice, closed: Tensor) -> Tensor:
        """The same for some of the key heads; `closed` (B, 1, R, m) is what they may not see of the first m columns."""
        columns = closed.shape[-1]
        key = self.key[:, groups, :columns]
        heads = self.query.shape[1] // self.key.shape[1]  # that share a key head
        query = self.query.unflatten(1, (-1, heads))[:, groups].flatten(1, 2)
        query = take(query, index, 2) * self.scaling  # before the product: in float16 it would overflow
        batch, _, rows, _ = query.shape
        query = query.reshape(batch, key.shape[1], heads * rows, -1)
        scores = products(query, key).view(batch, -1, rows, columns)  # (B, h, R, m)
        return scores.masked_fill_(closed, torch.finfo(scores.dtype).min).softmax(-1)

    def received(self, readers: Tensor, counts: list[int] | None = None, itself: bool = True) -> Tensor:
        """Head-mean attention that each token receives from the rows `readers` (B, M) bool, summed: (B, M) float32.

        Args:
            counts: how many readers each row of the batch has, if known; else they are read from the device.
            itself: whether what a token pays to itself counts.
        """
        total = self.query.new_zeros(self.real.shape, dtype=torch.float32)
        for index, valid, rows in self._in_parts(readers, counts):
            if not itself:
                own = index[:, None, :, None].expand(-1, rows.shape[1], -1, 1)
                rows = rows.scatter(3, own, 0.0)
            if valid is not None:
                rows = rows * valid[:, None, :, None]
            total[:, : rows.shape[-1]] += rows.sum((1, 2))
        return total / self.query.shape[1]

    def sent(self, senders: Tensor, counts: list[int] | None = None, *, to: Tensor) -> Tensor:
        """Head-mean attention that each token of `senders` pays to the columns `to`, (B, M) bool each: (B, M) float32.

        Zero for tokens that are no senders. `counts`: how many of those each row has, if known.
        """
        total = self.query.new_zeros(self.real.shape, dtype=torch.float32)
        for index, valid, rows in self._in_parts(senders, counts):
            paid = (rows.sum(1) * to[:, None, : rows.shape[-1]]).sum(-1)  # (B, r)
            if valid is not None:
                paid = paid * valid
            total.scatter_add_(1, index, paid)
        return total / self.query.shape[1]

    def _in_parts(self, rows: Tensor, counts: list[int] | None) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """The probabilities of the query rows `rows` (B, M) bool, a few rows and heads at a time.

        Yields:
            index (B, r); valid (B, r), False where a shorter row was filled up, or None; (B, h, r, m) float32, m <= M.
        """
        index, valid = pack(rows.to(self.query.device), counts)
        (batch, heads, _, _), (_, groups, length, _), total = self.query.shape, self.key.shape, index.shape[1]
        self.scored += total
        fit = self._budget() // (4 * batch * heads // groups * length)  # rows of one key head
        step = min(max(fit, LEAST_ROWS), total)
        wide = min(max(fit // max(step, 1), 1), groups)
        causal = self.mask is None or self.mask.ndim == 2
        for start in range(0, total, max(step, 1)):
            end = min(start + step, total)
            # the rows ascend, so that total - end of them, at least, lie behind this part
            seen = length - (total - end) if causal else length
            part, real = index[:, start:end], None if valid is None else valid[:, start:end]
            closed = ~allowed(self.mask, part, seen)
            for group in range(0, groups, wide):
                yield part, real, self._rows(part, slice(group, group + wide), closed)

    def _budget(self) -> int:
        """Bytes of float32 that a part of a computation may take."""
        return CPU_BYTES if self.query.device.type == "cpu" else PART_BYTES

    def last(self) -> Tensor:
        """Attention probabilities of the last prompt row, (B, H, M) float32."""
        return self.rows(self._last)[:, :, 0]

    def influence(self) -> tuple[Tensor, Tensor]:
        """How much of the last prompt row's output each token accounts for (VisiPruner, arXiv 2510.17205).

        With O the last row's output (heads concatenated) and c_i = A[last, i] v_i the part that comes from token i:

        Returns:
            cosine: (B, M) float32, cos(O - c_i, O). norm: (B, M) float32, ||c_i||.
            Both come from per-head scalars; no M x hidden tensor exists.
        """
        batch, heads, length = self.output.shape[0], self.output.shape[2], self.real.shape[1]
        weight = self.last()  # (B, H, M)
        self.scored += 2  # its two products with the values cost what a row does
        output = take(self.output, self._last, 1)[:, 0].float()  # (B, H, d)
        grouped = output.reshape(batch, self.value.shape[1], -1, output.shape[-1])  # (B, H_kv, H / H_kv, d)
        parts, squares = [], []
        for value in self.value.split(max(self._budget() // (4 * self.value[:, :, 0].numel()), 1), dim=2):
            value = value.float()  # (B, H_kv, m, d)
            parts.append((value @ grouped.mT).mT)
            squares.append(torch.linalg.vector_norm(value, dim=-1).square())  # makes no squares in memory
        along = torch.cat(parts, dim=-1).reshape(batch, heads, length)  # (B, H, M): <v_hi, O_h>
        size = torch.cat(squares, -1).repeat_interleave(heads // self.value.shape[1], dim=1)  # (B, H, M): ||v_hi||^2
        dot = (weight * along).sum(1)  # (B, M): <c_i, O>
        norm2 = (weight.square() * size).sum(1)  # (B, M): ||c_i||^2
        whole2 = output.square().sum((1, 2))[:, None]  # (B, 1): ||O||^2
        # (B, M): ||O - c_i||^2, a difference of like numbers where one token makes nearly all of O
        without2 = (whole2 - 2 * dot + norm2).maximum(1e-7 * whole2)
        cosine = ((whole2 - dot) / (whole2 * without2).sqrt()).clamp(-1.0, 1.0)
        return cosine, norm2.sqrt()

    @property
    def _last(self) -> Tensor:
        """(B, 1): prompts end in the last column, padding is on the left."""
        return torch.full((len(self.real), 1), self.real.shape[1] - 1, device=self.query.device)


def products(query: Tensor, key: Tensor) -> Tensor:
    """All products of queries (B, h, R, d) and keys (B, h, m, d): (B, h, R, m) float32.

    On a CPU one matrix after the other: for a batch of them torch would copy all the keys first.
    """
    if query.device.type != "cpu":
        return (query @ key.mT).float()
    scores = torch.empty(*query.shape[:3], key.shape[2], dtype=torch.float32)
    for b in range(len(query)):
        for h in range(query.shape[1]):
            scores[b, h] = query[b, h] @ key[b, h].mT
    return scores


def allowed(mask: Tensor | None, index: Tensor, length: int) -> Tensor:
    """Which of `length` columns the query rows at `index` (B, R) may read, (B, 1, R, length) bool.

    From whatever mask the kernel was given: 4-D, 2-D padding (flash attention) or None, which is plain causality.
    """
    if mask is not None and mask.ndim == 4:
        rows = take(mask[..., :length], index, 2)
        return rows if rows.dtype == torch.bool else rows == 0
    causal = torch.arange(length, device=index.device) <= index[..., None]  # (B, R, length)
    return (causal if mask is None else causal & mask[:, None, :length].bool())[:, None]
