"""torch.compile does not watch hooks: graphs made without them must go. A layer's own forward holds none of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was used on this module and its hooks: around it, on its call, or by `generate`."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None or "_compiled_call" in vars(module)


def uncompiled(module: nn.Module) -> Callable[..., Any]:
    """A module's forward without torch.compile around it."""
    return getattr(module.forward, "_torchdynamo_orig_callable", module.forward)


def has_compiled_forward(module: nn.Module) -> bool:
    """Whether torch.compile was used on this module's forward alone: its own hooks run outside of the graph."""
    return uncompiled(module) is not vars(module).get("forward", module.forward) and "forward" in vars(module)


def set_aside(layers: Iterable[nn.Module]) -> Callable[[], None]:
    """Let layers run without their compiled forward; returns what puts it back, harmless when repeated.

    A layer whose attention is read or edited has to: what reads it is no part of any graph.
    """
    aside = {layer: layer.forward for layer in layers if has_compiled_forward(layer)}
    for layer in aside:
        vars(layer)["forward"] = uncompiled(layer)

    def put_back() -> None:
        while aside:
            layer, forward = aside.popitem()
            vars(layer)["forward"] = forward

    return put_back


def forget_graphs(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Drop all compiled graphs of the process if one of the model's may hold hooks: it would be reused without them.

    A compiled forward of one of the decoder's `layers` holds none: the engine's stand before it.
    """
    before = set(layers)
    if any(is_compiled(m) or (m not in before and has_compiled_forward(m)) for m in model.modules()):
        torch._dynamo.reset()


def check_layers(decoder: Any) -> None:
    """Refuse a decoder that is compiled in parts, where a compiled layer cannot be told what was dropped.

    Raises:
        NotImplementedError: the decoder, or one of its layers and its hooks, is compiled by itself.
    """
    if has_compiled_forward(decoder) or any(is_compiled(module) for module in (decoder, *decoder.layers)):
        raise NotImplementedError(
            "the decoder or its layers are compiled by themselves: compile the whole model, torch.compile(model), "
            "or the forward of its layers, layer.forward = torch.compile(layer.forward)"
        )
