"""Knockout: what happens to the answer if some tokens may not read some others, in some layers.

Lifting the Veil on Visual Information Flow in MLLMs (HiMAP, CVPR 2025), https://arxiv.org/abs/2503.13108, Sec. 3

Blocked edges are -inf before the softmax, so that each row shares its attention among what is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foveate.flow.replay import compare, depth_of, record
from foveate.flow.result import Means, Result, collect, over
from foveate.flow.samples import Batch
from foveate.pruning.layout import Layout


@dataclass(frozen=True)
class Edges:
    """The edges from every token of the groups `sources` to every later token of the groups `readers`.

    Never an edge from a token to itself. Groups are those of `Layout.group`.

    Attributes:
        random: in their place as many random edges from `sources` to any later tokens (the control).
    """

    readers: tuple[str, ...]
    sources: tuple[str, ...]
    random: bool = False

    def blocked(self, layout: Layout, visible: Tensor, seeds: Sequence[int]) -> Tensor:
        """These edges in a batch, (B, L, L) bool; row i reads from column j. visible: (B, 1, L, L) bool.

        seeds: for each sample a number that fixes its random edges.
        """
        other = ~torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
        readers, sources = (union(layout, names).to(visible.device) for names in (self.readers, self.sources))
        pool = visible[:, 0] & sources[:, None, :] & layout.real.to(visible.device)[:, :, None] & other  # (B, L, L)
        edges = pool & readers[:, :, None]
        if not self.random:
            return edges
        return torch.stack([draw(*row) for row in zip(pool, edges.sum((1, 2)).tolist(), seeds, strict=True)])


VISUAL_TEXTUAL = Edges(readers=("instruction", "answer"), sources=("image",))
INTRA_VISUAL = Edges(readers=("image",), sources=("image",))
KINDS = {
    "visual-textual": VISUAL_TEXTUAL,
    "visual-textual control": replace(VISUAL_TEXTUAL, random=True),
    "intra-visual": INTRA_VISUAL,
    "intra-visual control": replace(INTRA_VISUAL, random=True),
}


def knockout(
    model: PreTrainedModel,
    samples: Iterable[Batch],
    kinds: Mapping[str, Edges] | Sequence[str] = tuple(KINDS),
    layers: Sequence[Collection[int]] | None = None,
    seed: int = 0,
) -> Result:
    """How far the prediction moves when each kind of edge is blocked in each set of layers.

    Values, each (samples, kind, layers): "same", 1 if the next token is still the same (label consistency); "jaccard"
    of the five likeliest tokens (score consistency); "kl", KL(blocked || full) in nats.

    Args:
        kinds: names among `KINDS`, or edges of your own under names of your own.
        layers: sets of layers to block in; by default every layer alone.
    """
    depth = depth_of(model)
    where = [[layer] for layer in range(depth)] if layers is None else [sorted(some) for some in layers]
    if any(not 0 <= layer < depth for some in where for layer in some):
        raise ValueError(f"the decoder has layers 0 to {depth - 1}, not all of {where}")
    if not isinstance(kinds, Mapping):
        if unknown := [name for name in kinds if name not in KINDS]:
            raise ValueError(f"there is no kind {', '.join(unknown)}: choose among {', '.join(KINDS)}, or give Edges")
        kinds = {name: KINDS[name] for name in kinds}
    edges = dict(kinds)

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Any]:
        dense = record(model, batch)
        seeds = [seed + number for number in batch.seeds]
        moved = []
        for kind in edges.values():
            blocked = kind.blocked(dense.layout, dense.visible(0), seeds)
            moved.append([compare(dense.logits, dense.knocked(blocked, some)) for some in where])
        return {key: [[m[key] for m in row] for row in moved] for key in ("same", "jaccard", "kl")}

    axes = over(("same", "jaccard", "kl"), "kind", "layers")
    labels = {"kind": list(edges), "layers": [spoken(some) for some in where]}
    return collect("knockout", samples, of_batch, axes, labels, {"seed": seed})


def bias_ratio(result: Result, measure: str = "jaccard") -> Any:
    """D_l = log(E_vv,l / E_vt,l) as a statistic of `knockout`'s means, (layers,), with E = 1 - consistency.

    Above zero, the prediction depends more on what visual tokens read from each other than on what text reads from
    them. Give it to `result.mean` or `result.interval`; measure is "same" or "jaccard".

    Raises:
        ValueError: the result lacks one of the two kinds.
    """
    if missing := {"visual-textual", "intra-visual"} - set(result.labels["kind"]):
        raise ValueError(f"the bias ratio needs {', '.join(sorted(missing))} too: run knockout with both kinds")
    vt, vv = (result.labels["kind"].index(kind) for kind in ("visual-textual", "intra-visual"))

    def statistic(mean: Means) -> np.ndarray:
        moved = 1 - mean[measure]
        return np.log(moved[..., vv, :] / moved[..., vt, :])

    return statistic


def union(layout: Layout, names: Iterable[str]) -> Tensor:
    """The tokens of several groups, (B, L) bool."""
    return torch.stack([layout.group(name) for name in names]).any(0)


def draw(pool: Tensor, count: int, seed: int) -> Tensor:
    """`count` random entries of `pool` (L, L) bool. The same whatever padding stands before the prompt."""
    drawn = torch.zeros_like(pool).flatten()
    places = pool.flatten().nonzero().flatten()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    drawn[places[order[:count].to(places.device)]] = True
    return drawn.view_as(pool)


def spoken(layers: Sequence[int]) -> str | int:
    """A set of layers as a label: 3, "0-5", "1,4"."""
    if len(layers) == 1:
        return layers[0]
    if layers and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers)) or "none"
