"""What a schedule saves on one model and prompt: dense and pruned side by side, from the config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .flops import Flops, decode, prefill
from .images import Images
from .published import published
from .shapes import decoder_shape
from .tokens import Schedule, kv_bytes, layer_average, tokens_per_layer, visual_per_layer


@dataclass(frozen=True)
class Cost:
    """One prompt and its answer, under one schedule."""

    visual: list[int]  # visual tokens in each layer
    tokens: list[int]  # all tokens in each layer
    prefill: Flops
    decode: Flops  # of the whole answer: every new token but the first, which the prefill gives
    kv_bytes: int  # the cache when the answer is complete
    published: int  # the formula's prefill, in its paper's unit

    @property
    def layer_average(self) -> float:
        """Layer-averaged visual tokens."""
        return layer_average(self.visual)


@dataclass(frozen=True)
class Comparison:
    """A schedule beside no pruning. Ratios are pruned to dense: what is left."""

    dense: Cost
    pruned: Cost
    formula: str  # of the published figures

    @property
    def prefill_ratio(self) -> float:
        """Of all prefill FLOPs: vision tower, projector, decoder, LM head and scoring."""
        return self.pruned.prefill.total / self.dense.prefill.total

    @property
    def decoder_ratio(self) -> float:
        """Of the decoder layers' prefill FLOPs: the share of their time that an ideal machine would take."""
        return self.pruned.prefill.decoder / self.dense.prefill.decoder

    @property
    def published_ratio(self) -> float:
        return self.pruned.published / self.dense.published


def compare(
    config: Any,
    visual: int,
    schedule: Schedule,
    *,
    text: int,
    scored: Mapping[int, int] | None = None,
    images: Images = 1,
    new_tokens: int = 1,
    dtype: Any = "bfloat16",
    formula: str = "himap",
) -> Comparison:
    """Cost of one prompt and its answer with and without pruning.

    Args:
        config: a composite or text config.
        visual: visual tokens of the prompt (`visual_tokens` gives them for one image).
        schedule: [(layer, kept), ...]: before that layer all but `kept` visual tokens are dropped.
        text: system and text tokens of the prompt.
        scored: {layer: attention rows} that the method computes, as in `prefill`.
        images: as in `prefill`.
        new_tokens: length of the answer, at least 1.
        dtype: of the KV cache.
        formula: of the published figure: "himap", "visipruner" or "vtw"; only vtw counts text.
    """
    shape = decoder_shape(config)

    def cost(stages: Schedule, rows: Mapping[int, int] | None) -> Cost:
        tokens = tokens_per_layer(shape.layers, text + visual, visual, stages)
        return Cost(
            visual=visual_per_layer(shape.layers, visual, stages),
            tokens=tokens,
            prefill=prefill(config, tokens, scored=rows, images=images),
            decode=decode(config, [n + 1 for n in tokens], new_tokens - 1),
            kv_bytes=kv_bytes(config, [n + new_tokens - 1 for n in tokens], dtype),
            published=published(shape, visual, stages, formula, text if formula == "vtw" else 0),
        )

    return Comparison(dense=cost((), None), pruned=cost(schedule, scored), formula=formula)
