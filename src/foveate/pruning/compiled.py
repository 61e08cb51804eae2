"""torch.compile does not watch hooks: graphs made without them must go, and layers compiled one by one are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was used on this module: around it, on its call or its forward, or by `generate`."""
    return (
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        or "_compiled_call" in vars(module)
    )


def forget_graphs(model: nn.Module) -> None:
    """Drop all compiled graphs of the process if the model has any: they would be reused though hooks have changed."""
    if any(is_compiled(module) for module in model.modules()):
        torch._dynamo.reset()


def check_layers(decoder: Any) -> None:
    """Refuse a decoder that is compiled in parts, where a compiled layer cannot be told what was dropped.

    Raises:
        NotImplementedError: the decoder or one of its layers is compiled by itself.
    """
    if any(is_compiled(module) for module in (decoder, *decoder.layers)):
        raise NotImplementedError(
            "the decoder or its layers are compiled by themselves: compile the whole model, torch.compile(model)"
        )
