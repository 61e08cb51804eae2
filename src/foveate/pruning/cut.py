"""The write point: hidden states, rotary embeddings and masks of the layers that run on survivors only."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PretrainedConfig
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

# kinds of layers whose mask can be had without transformers looking first, and waiting for it, if there is padding
MAY_REFUSE_TO_SKIP = frozenset(
    kind
    for kind, make in LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.items()
    if callable(make) and "allow_is_causal_skip" in inspect.signature(make).parameters
)


def take(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Entries of `x` along `dim` at a (B, M) index, per row of the batch; an `x` of batch size 1 serves every row."""
    index = index.to(x.device)
    dim = dim % x.ndim
    if x.shape[0] != len(index):
        x = x.expand(len(index), *x.shape[1:])
    if len(index) == 1:
        return x.index_select(dim, index[0])
    shape = [len(index)] + [1] * (x.ndim - 1)
    shape[dim] = index.shape[1]
    return x.gather(dim, index.view(shape).expand(*x.shape[:dim], index.shape[1], *x.shape[dim + 1 :]))


def pack(keep: Tensor, counts: list[int] | None = None) -> tuple[Tensor, Tensor | None]:
    """Kept entries of every row as one rectangle.

    Args:
        keep: (B, L) bool.
        counts: how many each row keeps, if known; else they are read from the device.

    Returns:
        index (B, M) ascending, M the longest row's count, and valid (B, M) bool, False where a shorter row had to be
        filled up with entries it does not keep; None if no row was.
    """
    counts = keep.sum(1).tolist() if counts is None else counts
    width = max(counts)
    index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width].sort(dim=1).values  # (B, M)
    return index, (keep.gather(1, index) if min(counts) < width else None)


def prompt_mask(given: Tensor, index: Tensor, valid: Tensor | None, keys: int | None = None) -> Tensor:
    """The prompt's own 4-D mask for its survivors: rows and columns at `index` (B, M), filler columns closed.

    Gathering keeps whatever pattern the model drew (say, attention both ways inside an image). A static cache has more
    `keys` than survivors; the rest is closed too.
    """
    mask = take(take(given, index, -2), index, -1)  # (B, 1, M, M)
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    if valid is not None:
        mask = mask.masked_fill(~valid[:, None, None].to(mask.device), closed)
    return mask if keys is None else pad(mask, (0, keys - mask.shape[-1]), value=closed)  # (B, 1, M, keys)


def causal_mask(
    config: PretrainedConfig, kind: str, hidden: Tensor, real: Tensor | None, cache: Cache | None, layer: int
) -> Tensor | None:
    """Transformers' own mask for one layer, in the form its kernel wants, sized by that layer's own cache.

    Args:
        kind: the layer's entry in `config.layer_types`.
        hidden: (B, Q, D), read for its shape, dtype and device.
        real: (B, kv) bool, False on padding and filler; None if there is none.
    """
    make = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]
    given: dict[str, Any] = {}
    if real is not None and kind in MAY_REFUSE_TO_SKIP:
        given["allow_is_causal_skip"] = False
    return make(
        config=config, inputs_embeds=hidden, attention_mask=real, past_key_values=cache, layer_idx=layer, **given
    )
