"""Exact FLOPs of a multimodal LLM's prefill and decode, from shapes.

Convention: a FLOP is one multiplication or one addition, so that the product of an (m, k) and a (k, n) matrix costs
2mkn. Matrix products are counted, convolutions among them; norms (of q and k too), rotary embeddings, activations and
softmax are not. Attention is counted dense, queries x keys, as torch's FlopCounterMode does and as a kernel without
causal skipping computes it; a sliding window makes it cheaper in decode only. Padding is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .images import Images, patch_grids, tower_tokens
from .shapes import DecoderShape, VisionShape, decoder_shape, vision_shape
from .tokens import Counts, per_sample


@dataclass(frozen=True)
class Flops:
    """FLOPs by where they are spent."""

    vision: int = 0  # the vision tower
    projector: int = 0  # projector or patch merger
    projections: int = 0  # q, k, v and o of the decoder
    attention: int = 0  # QK^T and PV of the decoder
    ffn: int = 0  # FFN or router and active experts
    head: int = 0  # LM head
    scoring: int = 0  # what a pruning method computes to decide

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def decoder(self) -> int:
        """Of the decoder layers alone: projections, attention and FFN."""
        return self.projections + self.attention + self.ffn

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def prefill(
    config: Any,
    tokens: Counts,
    *,
    scored: Mapping[int, int | Sequence[int]] | None = None,
    images: Images = 1,
    logits: int = 1,
    vision: VisionShape | None = None,
) -> Flops:
    """FLOPs of reading a prompt.

    Args:
        config: a composite or text config, or a `DecoderShape`.
        tokens: tokens in each decoder layer (system, text and visual), a count or one count per sample.
        scored: {layer: attention rows that the method computes there}, a count or one count per sample; a row costs a
            product with each key of the layer in all heads. VisiPruner's influences cost as much as two more rows.
        images: how many images (or tiles, where a model cuts its images) of the config's own size, or for each its
            (height, width) in pixels or its patch grid (frames, rows, columns); 0 leaves the vision tower out.
        logits: positions per sample that go through the LM head; `generate` computes the last one only.
        vision: a `VisionShape` to go with a `DecoderShape`; otherwise the config's own.
    """
    shape = decoder_shape(config)
    layers = per_sample(tokens, shape)
    flops = _layers(shape, [[(n, n) for n in layer] for layer in layers])
    flops += Flops(head=_head(shape, logits * len(layers[-1])), scoring=_scoring(shape, layers, scored or {}))
    if images != 0 and (tower := vision or vision_shape(config)) is not None:
        flops += _vision(tower, images)
    return flops


def decode(config: Any, keys: Counts, steps: int = 1) -> Flops:
    """FLOPs of `steps` decode steps of one token per sample.

    `keys` is, for each layer (and sample), how many keys the first of these tokens attends to, itself included: the
    prompt's tokens in that layer plus one. Every step adds one; a sliding-window layer sees at most its window.
    """
    shape = decoder_shape(config)
    layers = per_sample(keys, shape)
    total = Flops()
    for step in range(steps):
        pairs = [
            [(1, min(n + step, window) if window else n + step) for n in layer]
            for layer, window in zip(layers, shape.windows, strict=True)
        ]
        total += _layers(shape, pairs) + Flops(head=_head(shape, len(layers[-1])))
    return total


def _layers(shape: DecoderShape, pairs: list[list[tuple[int, int]]]) -> Flops:
    """The decoder layers, given (queries, keys) per layer and sample."""
    queries = [sum(q for q, _ in layer) for layer in pairs]
    scores = sum(q * k for layer in pairs for q, k in layer)
    width = shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)  # columns of q and o, of k and v
    return Flops(
        projections=2 * sum(queries) * shape.hidden * width,
        attention=2 * scores * 2 * shape.heads * shape.head_dim,
        ffn=2 * sum(n * ffn for n, ffn in zip(queries, shape.ffn, strict=True)),
    )


def _head(shape: DecoderShape, positions: int) -> int:
    return 2 * positions * shape.hidden * shape.vocab


def _scoring(shape: DecoderShape, layers: list[list[int]], scored: Mapping[int, int | Sequence[int]]) -> int:
    products = 0
    for layer, rows in scored.items():
        if not 0 <= layer < shape.layers:
            raise ValueError(f"Scored layer {layer} does not exist; this decoder has layers 0..{shape.layers - 1}.")
        each = rows if isinstance(rows, Sequence) else [rows] * len(layers[layer])
        products += sum(r * keys for r, keys in zip(each, layers[layer], strict=True))
    return 2 * products * shape.heads * shape.head_dim


def _vision(shape: VisionShape, images: Images) -> Flops:
    """Tower and projector. Frames do not see each other; windows at the edge of a frame are cut short."""
    d, tower, projector = shape.hidden, 0, 0
    for frames, rows, columns in patch_grids(shape, images):
        patches = frames * rows * columns
        n = patches + shape.class_token
        tower += 2 * patches * shape.patch_inputs * d
        tower += len(shape.windows) * 2 * n * (4 * d * d + shape.ffn)
        for window in shape.windows:
            pairs = n * n // frames if window is None else frames * _squares(rows, window) * _squares(columns, window)
            tower += 2 * 2 * pairs * d
        if shape.pooling_head:  # one query over all patches, then an FFN on it
            tower += 2 * (2 * d * d * (n + 1) + 2 * n * d + 2 * d * shape.pooling_head)
        projector += 2 * tower_tokens(shape, frames, rows, columns) * shape.projector
    return Flops(vision=tower, projector=projector)


def _squares(length: int, window: int) -> int:
    """Sum of squares of the windows that `length` patches are cut into."""
    return length // window * window**2 + (length % window) ** 2
