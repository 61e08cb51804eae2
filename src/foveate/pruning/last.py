"""The last layer of a prompt: when generation wants one token of it, the others need no more than keys and values."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig, StaticCache

from foveate.pruning.compiled import uncompiled
from foveate.pruning.tap import Tap

SHOWN = ("output_hidden_states", "output_attentions", "output_router_logits")


def wants_last_token_only(call: Mapping[str, Any], configs: Iterable[PretrainedConfig]) -> bool:
    """Whether the arguments of a model's forward ask for the last token's logits and for nothing else of a layer."""
    shown = any(call.get(name) for name in SHOWN) or any(getattr(c, name, False) for c in configs for name in SHOWN)
    keep = call.get("logits_to_keep")
    return isinstance(keep, int) and keep == 1 and not shown


def may_run_alone(model: nn.Module, decoder: Any, cache: Cache | None) -> bool:
    """Whether the last layer of a prompt gives the last token the same when all others leave only keys and values."""
    if decoder.training or torch.compiler.is_compiling() or not holds_exactly(cache):
        return False
    behind = [module for name, module in decoder.named_children() if name != "layers"]
    base: Any = model.base_model
    return unwatched(decoder.layers[-1], (*behind, decoder, base))


def leave_keys(tap: Tap, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Let all tokens of `hidden` (B, M, D) but the last leave their keys and values in a layer's cache.

    Returns:
        the last token (B, 1, D) and its arguments, to run as one that follows the others; its mask is still to be made.
    """
    cache = kwargs.get("past_key_values")
    common = kwargs | {"past_key_values": DynamicCache() if cache is None else cache, "attention_mask": None}
    rope, positions = kwargs["position_embeddings"], kwargs.get("position_ids")

    def of(part: slice) -> dict[str, Any]:
        places = None if positions is None else positions[..., part]
        return common | {"position_embeddings": tuple(x[..., part, :] for x in rope), "position_ids": places}

    tap.fill(layer, hidden[:, :-1], of(slice(-1)))
    return hidden[:, -1:], of(slice(-1, None))


def holds_exactly(cache: Cache | None) -> bool:
    """Whether a cache gives back later what was put into it, bit for bit; a quantised one does not."""
    return cache is None or (type(cache) in (DynamicCache, StaticCache) and not cache.offloading)


def unwatched(layer: nn.Module, behind: Iterable[nn.Module]) -> bool:
    """Whether nobody but transformers and this library looks into a layer, or at what the modules behind it are given.

    Whoever hooks them, or has put another forward in place (as accelerate does to move weights), gets all tokens.
    """
    for module in (*layer.modules(), *behind):
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not all(of_the_house(hook) for hook in hooks):
            return False
    attention = getattr(layer, "self_attn", None)
    own = all(uncompiled(module) == MethodType(type(module).forward, module) for module in layer.modules())
    return own and hasattr(attention, "config")


def of_the_house(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return (getattr(hook, "__module__", None) or "").startswith(("transformers.", "foveate.pruning."))
