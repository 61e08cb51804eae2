"""Withdrawal: from which layer on can a model do without its visual tokens?

Boosting Multimodal Large Language Models with Visual Tokens Withdrawal (VTW, AAAI 2025), https://arxiv.org/abs/2405.05803

One dense pass, recorded, gives the whole curve: the withdrawals at all layers so far travel through the next layer
together, as one batch of text tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foveate.flow.replay import Recording, compare, depth_of, record
from foveate.flow.result import Result, collect, over
from foveate.flow.samples import Batch
from foveate.pruning.cut import pack, prompt_mask, take

ETA = 0.003  # published threshold of the search for LLaVA-1.5-7B, nats
FIRST = 5  # published first layer of the search


def withdrawal(model: PreTrainedModel, samples: Iterable[Batch], skips: bool = False) -> Result:
    """How far the prediction moves if all visual tokens leave before layer K, for every K.

    Values, each (samples, layer): "kl", KL(withdrawn at K || full) of the next token in nats; "same", 1 if the next
    token is the same; "jaccard" of the five likeliest. With `skips` the same for visual tokens that only skip that one
    layer (they are not read in it and enter the next one unchanged), "skip_kl" and so on, at the cost of half a dense
    pass for each layer.
    """

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Any]:
        dense = record(model, batch)
        moved = [compare(dense.logits, logits) for logits in withdrawn(dense)]
        values = {key: [m[key] for m in moved] for key in moved[0]}
        if skips:
            moved = [compare(dense.logits, skipped(dense, layer)) for layer in range(dense.layers)]
            values |= {f"skip_{key}": [m[key] for m in moved] for key in moved[0]}
        return values

    names = [f"{kind}{key}" for kind in (("", "skip_") if skips else ("",)) for key in ("kl", "same", "jaccard")]
    labels = {"layer": list(range(depth_of(model)))}
    return collect("withdrawal", samples, of_batch, over(names, "layer"), labels, {"skips": skips})


def withdrawn(dense: Recording) -> Tensor:
    """Next-token logits with all visual tokens gone before layer K, for every K: (K, B, V)."""
    columns, valid = pack(dense.layout.real & ~dense.layout.visual)  # (B, M)
    travelling = dense.entering[0][:, :0, :].new_zeros(0, columns.shape[1], dense.entering[0].shape[2])
    for layer in range(dense.layers):
        travelling = torch.cat([travelling, take(dense.entering[layer], columns, 1)])  # ((layer + 1) B, M, D)
        visible = prompt_mask(dense.visible(layer), columns, valid)
        many = layer + 1
        travelling = dense.run(layer, travelling, columns.repeat(many, 1), visible.repeat(many, 1, 1, 1))
    return dense.logits_of(travelling).view(dense.layers, *dense.logits.shape)


def skipped(dense: Recording, layer: int) -> Tensor:
    """Next-token logits (B, V) with the visual tokens left out of one layer."""
    columns, valid = pack(dense.layout.real & ~dense.layout.visual)
    entering = dense.entering[layer]
    text = take(entering, columns, 1)
    after = dense.run(layer, text, columns, prompt_mask(dense.visible(layer), columns, valid))
    if valid is not None:
        after = torch.where(valid[..., None], after, text)
    hidden = dense.between(layer, entering.scatter(1, columns[..., None].expand_as(after), after))
    if layer + 1 == dense.layers:
        return dense.logits_of(hidden)
    return dense.onward(layer + 1, hidden, 0, None, ())


def search(result: Result, eta: float = ETA, first: int = FIRST) -> int | None:
    """VTW's choice of K: the first layer from `first` on whose mean KL is at most `eta`; None if there is none."""
    fits = np.flatnonzero(result.mean("kl")[first:] <= eta)
    return int(fits[0]) + first if len(fits) else None
