"""Static KV caches: layers that hold less of a prompt allocate less, and a cache that is emptied forgets the prompt."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers import Cache, StaticCache
from transformers.cache_utils import StaticLayer

from foveate.pruning.stages import Prompt, Stage

STEP = 64  # lengths differ by multiples of this, so that prompts of like size find the compiled graphs of each other


def fit(cache: Cache, stage: Stage, length: int) -> None:
    """Let the layers of a stage, still empty, allocate as many columns fewer as the stage holds less than `length`.

    Whatever fits into the first layer still fits into every other: they all get the same tokens after the prompt.
    """
    if type(cache) is not StaticCache:
        return
    layers: list[Any] = cache.layers
    reset = vars(cache).setdefault("reset", Reset(cache, [layer.max_cache_len for layer in layers]))
    fewer = (length - stage.index.shape[1]) // STEP * STEP
    for layer, own in zip(layers[stage.layer :], reset.lengths[stage.layer :], strict=True):
        if type(layer) is StaticLayer and not layer.is_initialized:
            layer.max_cache_len = own - fewer


class Reset:
    """Stands before the `reset` of one static cache that holds a pruned prompt, and is gone after it.

    Asking a static cache whether it is empty would mean to wait for the device at every token.

    Attributes:
        lengths: of its layers, before any was made shorter.
    """

    def __init__(self, cache: Cache, lengths: list[int]):
        self.cache, self.lengths = weakref.ref(cache), lengths  # in a circle it would outlive its last user

    def __reduce__(self) -> Any:
        return Reset, (self.cache(), self.lengths)  # a copy of the cache is reset by a copy of this

    def __call__(self) -> None:
        cache: Any = self.cache()
        Prompt.forget(cache)
        vars(cache).pop("reset")
        for layer, own in zip(cache.layers, self.lengths, strict=True):
            if layer.max_cache_len != own:
                layer.max_cache_len, layer.is_initialized = own, False
                layer.keys = layer.values = None
        cache.reset()


def was_reset(cache: Cache, prompt_like: bool) -> bool:
    """Whether the cache that held a prompt is empty. A static one has told by itself, if it was emptied as a whole.

    Args:
        prompt_like: there are several new tokens, so that a wait for the device does not matter.
    """
    if torch.compiler.is_compiling():
        return False  # a graph that is being compiled adds to a cache that is not empty
    held = cache.get_seq_length()
    return (isinstance(held, int) or prompt_like) and int(held) == 0


def forget(cache: Cache) -> None:
    """The cache is empty: it holds no prompt any more, and its layers have their own lengths again."""
    Prompt.forget(cache)
    if isinstance(reset := vars(cache).get("reset"), Reset):
        reset()
