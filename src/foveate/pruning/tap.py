"""The read point: q, k, v and output of single attention layers, while the user's own kernel computes them."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.pruning.compiled import uncompiled
from foveate.pruning.cut import pack, take

MAX_BANDS = 8  # of edited rows that are worth a call of attention each
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


class Filled(Exception):
    """A layer has come as far as it had to: its keys and values are in the cache."""


class Tap:
    """Shows the attention of chosen layers to the engine while one prompt is read.

    A tapped layer is given its own copy of the config, one that names this tap as its attention implementation; all
    other layers, and the model's masks, never notice. Calls from other threads pass through to the user's kernel.
    """

    def __init__(self):
        self.name = f"foveate_{uuid4().hex}"
        self.configs: dict[Any, PretrainedConfig] = {}  # of each tapped attention module, the user's own
        self.reader = 0  # the thread that reads a prompt
        self.edits: Callable[[torch.device], Sequence[Edit]] | None = None  # of the next tapped layer
        self.seen: Callable[[Tensor], Attention] | None = None  # of the last tapped layer
        self.planned: tuple[Sequence[Edit], Plan] | None = None  # for the last edited layer; the next is often its like
        self.filling: Any = None  # the attention module that runs for its keys and values only

    def open(self, modules: Iterable[Any]) -> None:
        """Tap these attention modules for calls from this thread, until `close`."""
        self.close()
        self.reader = threading.get_ident()
        ALL_ATTENTION_FUNCTIONS[self.name] = self.attend  # in this process' local mapping, until `close`
        for module in modules:
            self.configs[module] = module.config
            module.config = self._tapped(module.config)

    def close(self) -> None:
        """Give every config back and forget what was seen."""
        for module, config in self.configs.items():
            module.config = config
        self.configs, self.edits, self.seen = {}, None, None
        if self.name in ALL_ATTENTION_FUNCTIONS:
            del ALL_ATTENTION_FUNCTIONS[self.name]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """An attention function of transformers: the user's own, then remember what went in and came out."""
        if module is self.filling and threading.get_ident() == self.reader:
            raise Filled
        module = self._untapped(module)
        kernel = attention_function(module)
        if threading.get_ident() != self.reader:
            return kernel(module, query, key, value, mask, **kwargs)
        for name in ("softcap", "s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                raise NotImplementedError(
                    f"attention with {name!r} is not plain softmax(QK)V: use a method that reads no attention, like VTW"
                )
        scaling, length = kwargs["scaling"], query.shape[2]

        def first(n: int, value: Tensor = value) -> tuple[Tensor, Any]:
            """The user's kernel on the first n tokens of the prompt."""
            part = mask if mask is None else mask[:, :n] if mask.ndim == 2 else mask[..., :n, :n]
            return kernel(module, query[:, :, :n], key[:, :, :n], value[:, :, :n], part, **kwargs)

        if self.edits is None:
            output, weights = kernel(module, query, key, value, mask, **kwargs)
        else:
            edits = self.edits(query.device)
            plan = self._plan(edits if query.device.type == "cpu" else self.edits(torch.device("cpu")))
            self.edits = None
            if module.config._attn_implementation == "eager":
                output, weights = edited_eager(first(length)[1], value[:, :, :length], edits)
            else:
                output, weights = edited(query, key, value, mask, edits, plan, scaling, lambda *x: first(*x)[0]), None
        if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
            mask = both_ways(mask, query)
        self.seen = lambda real: Attention(query, key, value, output, mask, real, scaling)
        return output, weights

    def fill(self, layer: Any, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Run a decoder layer no further than to its attention: its cache gets the keys and values of `hidden`."""
        self.open([layer.self_attn])
        self.filling = layer.self_attn
        try:
            uncompiled(layer)(hidden, **kwargs)
        except Filled:
            pass
        finally:
            self.filling = None
            self.close()

    def attention(self, real: Tensor) -> Attention | None:
        """What the last tapped layer computed over survivors (`real` (B, M) False on filler); None if none was."""
        return None if self.seen is None else self.seen(real)

    def _plan(self, edits: Sequence[Edit]) -> Plan:
        """How rows fall under these edits (on the host), worked out once for layers in a row that edit the same."""
        if self.planned is None or not alike(self.planned[0], edits):
            self.planned = edits, Plan.of(edits)
        return self.planned[1]

    def _tapped(self, config: PretrainedConfig) -> PretrainedConfig:
        config = copy.copy(config)
        config._attn_implementation_internal = self.name
        return config

    def _untapped(self, module: Any) -> Any:
        """The module as kernels should see it, with the user's config; the same parameters."""
        user = copy.copy(module)
        user.config = self.configs.get(module, module.config)
        return user


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


def attention_function(module: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The kernel that an attention module's config names; "eager" is a function of its modeling file."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)


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


def both_ways(mask: Tensor | None, query: Tensor) -> Tensor:
    """The mask, 4-D, of a prompt that is read in both directions: flash attention is told so apart from its mask."""
    if mask is not None and mask.ndim == 4:
        return mask
    batch, _, length, _ = query.shape
    seen = query.new_ones(batch, length, dtype=torch.bool) if mask is None else mask.bool()  # (B, M)
    return seen[:, None, None].expand(-1, 1, length, -1)  # (B, 1, M, M)


def allowed(mask: Tensor | None, index: Tensor, length: int) -> Tensor:
    """Which of `length` columns the query rows at `index` (B, R) may read, (B, 1, R, length) bool.

    From whatever mask the kernel was given: 4-D, 2-D padding (flash attention) or None, which is plain causality.
    """
    if mask is not None and mask.ndim == 4:
        rows = take(mask[..., :length], index, 2)
        return rows if rows.dtype == torch.bool else rows == 0
    causal = torch.arange(length, device=index.device) <= index[..., None]  # (B, R, length)
    return (causal if mask is None else causal & mask[:, None, :length].bool())[:, None]
