"""The last layer of a prompt: when generation wants one token of it, the others need no more than keys and values."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import Cache, DynamicCache, PretrainedConfig, StaticCache

SHOWN = ("output_hidden_states", "output_attentions", "output_router_logits")


def wants_last_token_only(call: Mapping[str, Any], config: PretrainedConfig) -> bool:
    """Whether the arguments of a model's forward ask for the last token's logits and for nothing else of a layer."""

    def asked(name: str) -> bool:
        given = call.get(name)
        return bool(getattr(config, name, False) if given is None else given)

    keep = call.get("logits_to_keep")
    return isinstance(keep, int) and keep == 1 and not any(asked(name) for name in SHOWN)


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
    return hasattr(attention, "config") and not any("forward" in vars(module) for module in layer.modules())


def of_the_house(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", "").split(".")[0] in ("transformers", "foveate")
