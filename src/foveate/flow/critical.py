"""Critical tokens: the few visual tokens that the answer position's attention output really depends on.

VisiPruner (EMNLP 2025), https://arxiv.org/abs/2510.17205, Sec. 4

With O the last row's attention output before the output projection and c_i = A[last, i] v_i the part of it that comes
from visual token i: cos(O - c_i, O) says whether the output would point elsewhere without it, ||c_i|| how much that is.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foveate.flow.replay import depth_of, observe
from foveate.flow.result import Result, collect, over
from foveate.flow.samples import Batch
from foveate.methods.base import highest


def critical(
    model: PreTrainedModel, samples: Iterable[Batch], fire: float = 0.995, influence: float = 0.2, top: int = 10
) -> Result:
    """How many visual tokens matter in each layer, how much, and whether they stay the same ones.

    Values, each (samples, layer): "lowest", the smallest cos(O - c_i, O) of any visual token; "critical", how many have
    a cosine below `fire`; "influential", how many have ||c_i|| above `influence`; "largest" and "total" ||c_i||;
    "focus", Jaccard index of the `top` tokens by ||c_i|| with those of the layer before (nan in layer 0).
    """

    def of_batch(batch: Batch) -> dict[str, Any]:
        visual = batch.layout(model).visual
        _, seen = observe(model, batch, lambda layer, attention: attention.influence())
        tops = [min(top, total) for total in visual.sum(1).tolist()]
        found = [of_layer(cosine, norm, visual.to(norm.device), fire, influence) for cosine, norm in seen]
        leading = [highest(norm, visual.to(norm.device), tops) for _, norm in seen]  # (B, L) bool each
        focus = [jaccard(a, b) for a, b in pairwise(leading)]
        return {
            **{key: [layer[key] for layer in found] for key in found[0]},
            "focus": [torch.full_like(found[0]["lowest"], torch.nan), *focus],
        }

    names = ("lowest", "critical", "influential", "largest", "total", "focus")
    axes = over(names, "layer")
    labels = {"layer": list(range(depth_of(model)))}
    settings = {"fire": fire, "influence": influence, "top": top}
    return collect("critical", samples, of_batch, axes, labels, settings)


def of_layer(cosine: Tensor, norm: Tensor, visual: Tensor, fire: float, influence: float) -> dict[str, Tensor]:
    """One layer's figures, (B,) each, from its (B, L) influence; nan for a prompt without visual tokens."""
    none = torch.where(visual.any(1), 0.0, torch.nan)
    norm = torch.where(visual, norm, 0.0)
    return {
        "lowest": torch.where(visual, cosine, 1.0).amin(1) + none,
        "critical": (visual & (cosine < fire)).sum(1) + none,
        "influential": (visual & (norm > influence)).sum(1) + none,
        "largest": norm.amax(1) + none,
        "total": norm.sum(1) + none,
    }


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Tokens in both over tokens in either, (B,); a and b (B, L) bool."""
    return (a & b).sum(1) / (a | b).sum(1)
