"""How many tokens each layer has under a schedule, and what the KV cache of that many holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .shapes import DecoderShape, decoder_shape

Schedule = Sequence[tuple[int, int]]  # (layer, visual tokens kept): before that layer all but so many are dropped
Counts = Sequence[int | Sequence[int]]  # one entry per layer: a count, or a list with one count per sample

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1}


def visual_per_layer(layers: int, visual: int, schedule: Schedule = ()) -> list[int]:
    """Visual tokens in each of `layers` decoder layers, of `visual` in the prompt.

    Raises ValueError if the schedule's layers do not ascend within 0..layers-1 or a stage keeps more than there are.
    """
    counts, last = [visual] * layers, -1
    for layer, kept in schedule:
        if not last < layer < layers:
            raise ValueError(f"Schedule layers must ascend and lie in 0..{layers - 1}; got {[s[0] for s in schedule]}.")
        if not 0 <= kept <= counts[-1]:
            raise ValueError(f"Before layer {layer} there are {counts[-1]} visual tokens; a stage cannot keep {kept}.")
        counts[layer:] = [kept] * (layers - layer)
        last = layer
    return counts


def tokens_per_layer(layers: int, prompt: int, visual: int, schedule: Schedule = ()) -> list[int]:
    """All tokens in each decoder layer, of a prompt of `prompt` tokens, `visual` of them visual; text always stays."""
    if not 0 <= visual <= prompt:
        raise ValueError(f"A prompt of {prompt} tokens cannot hold {visual} visual tokens.")
    return [prompt - visual + kept for kept in visual_per_layer(layers, visual, schedule)]


def layer_average(counts: Sequence[int]) -> float:
    """Mean over layers: the "layer-averaged tokens" by which methods that prune at different depths can be compared."""
    return sum(counts) / len(counts)


def kv_bytes(config: Any, lengths: Counts, dtype: Any = "bfloat16") -> int:
    """Bytes of the KV cache (keys and values) that holds `lengths` tokens in each layer.

    `dtype` is a name, a torch.dtype, or the bytes of a number. A sliding-window layer holds at most window - 1 tokens.
    """
    shape = decoder_shape(config)
    size = dtype if isinstance(dtype, int) else getattr(dtype, "itemsize", None) or BYTES.get(dtype)
    if size is None:
        raise ValueError(f"Unknown dtype {dtype!r}; pass one of {sorted(BYTES)}, a torch.dtype, or a number's bytes.")
    held = sum(
        min(length, window - 1) if window else length
        for layer, window in zip(per_sample(lengths, shape), shape.windows, strict=True)
        for length in layer
    )
    return held * 2 * shape.kv_heads * shape.head_dim * size


def per_sample(counts: Counts, shape: DecoderShape) -> list[list[int]]:
    """Counts as lists over layers of lists over samples; ValueError if there is not one entry per layer."""
    if len(counts) != shape.layers:
        raise ValueError(f"This decoder has {shape.layers} layers; got counts for {len(counts)}.")
    return [[int(n) for n in c] if isinstance(c, Sequence) else [int(c)] for c in counts]
