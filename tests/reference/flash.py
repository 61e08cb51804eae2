"""Flash attention as transformers hands it work, written out, so that its interface is tested without a GPU.

What differs from the other kernels: padding comes as a 2-D mask or not at all, causality is counted from the last key,
rows of padding give zeros, and positions with gaps are taken for sequences packed one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "flash_attention_2"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Output (B, q, H, d) of queries (B, H, q, d) over keys and values (B, h, kv, d), under a mask (B, kv) or None."""
    (batch, heads, rows), columns = query.shape[:3], key.shape[2]
    causal = module.is_causal if is_causal is None else is_causal
    if mask is None and batch == 1 and position_ids is not None and not consecutive(position_ids[0]):
        raise AssertionError("flash attention would take these positions for packed sequences")
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    row, column = torch.arange(columns - rows, columns)[:, None], torch.arange(columns)
    seen = column <= row if causal else torch.ones(rows, columns, dtype=torch.bool)
    if sliding_window is not None:
        seen = seen & (column > row - sliding_window)
    seen = seen[None] if mask is None else seen & real(mask, batch, columns)  # (B or 1, q, kv)
    scores = (query @ key.mT * scaling).masked_fill(~seen[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0)  # rows that see nothing
    return (weights @ value).transpose(1, 2).contiguous(), None


def consecutive(positions: Tensor) -> bool:
    return bool((positions.diff() == 1).all())


def real(mask: Tensor, batch: int, columns: int) -> Tensor:
    """The mask (B, kv) as (B, 1, kv), if it is one that the kernel can unpad with."""
    if mask.shape != (batch, columns):
        raise AssertionError(f"a mask of the shape {tuple(mask.shape)} for {batch} rows of {columns} keys")
    return mask[:, None].bool()


@contextmanager
def flash(model: Any) -> Iterator[None]:
    """The decoder of this model runs on the kernel above, under the name of the real one."""
    config = model.get_decoder().config
    before = config._attn_implementation_internal
    ALL_ATTENTION_FUNCTIONS[NAME] = attend
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before
        del ALL_ATTENTION_FUNCTIONS[NAME]
