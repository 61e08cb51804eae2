"""Attention merging: are visual tokens idle sinks, so that one of them could take the attention of all?

VisiPruner (EMNLP 2025), https://arxiv.org/abs/2510.17205, Eq. 1: what the text pays to the whole image goes to the
first visual token, A'[i, first] = sum over visual j of A[i, j], and A'[i, j] = 0 for the others, not renormalised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foveate.flow.replay import Recording, compare, depth_of, record
from foveate.flow.result import Result, collect, over
from foveate.flow.samples import Batch
from foveate.pruning.edits import Edit


def merging(model: PreTrainedModel, samples: Iterable[Batch]) -> Result:
    """How far the prediction moves when the text's attention on the image is merged into the first visual token.

    Values, each (samples, layer): "kl", "same" and "jaccard" as in `knockout`, merged in that layer alone; "first_kl"
    and so on, merged in all layers up to that one.
    """
    depth = depth_of(model)
    sweeps = {"": [[k] for k in range(depth)], "first_": [range(k + 1) for k in range(depth)]}

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Any]:
        dense, values = record(model, batch), {}
        for sweep, sets in sweeps.items():
            moved = [compare(dense.logits, merged(dense, layers)) for layers in sets]
            values |= {f"{sweep}{key}": [m[key] for m in moved] for key in moved[0]}
        return values

    names = [f"{sweep}{key}" for sweep in sweeps for key in ("kl", "same", "jaccard")]
    return collect("merging", samples, of_batch, over(names, "layer"), {"layer": list(range(depth))})


def merged(dense: Recording, where: Collection[int]) -> Tensor:
    """Next-token logits (B, V) with the text's attention on the image merged in the layers `where`."""
    layout = dense.layout.to(dense.logits.device)
    text = (layout.instruction | layout.answer) & layout.visual.any(1, keepdim=True)  # (B, L)
    if not text.any():
        return dense.logits
    edit = Edit(text, layout.visual, into=layout.visual.int().argmax(1))
    first, start = min(where), int(text.any(0).int().argmax())
    hidden, columns = dense.entering[first][:, start:], dense.columns[:, start:]
    for layer in range(first, dense.layers):
        visible = dense.visible(layer)[:, :, start:]
        after = dense.run(layer, hidden, columns, visible, before=start)
        if layer in where:  # the layer again, with the values that the merged attention amounts to
            edited = dense.run(layer, hidden, columns, visible, before=start, values=edit.values)
            after = torch.where(text[:, start:, None], edited, after)
        hidden = dense.between(layer, after, start)
    return dense.logits_of(hidden)
