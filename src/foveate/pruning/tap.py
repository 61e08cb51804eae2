"""The read point: chosen attention layers show what they compute, while the user's own kernel computes it."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.pruning.attention import Attention
from foveate.pruning.compiled import uncompiled
from foveate.pruning.edits import Edit, Plan, alike, edited, edited_eager


class Filled(Exception):
    """A layer has come as far as it had to: its keys and values are in the cache."""


class Tap:
    """Shows the attention of chosen layers to the engine while one prompt is read.

    A tapped layer is given its own copy of the config, one that names this tap as its attention implementation; all
    other layers, and the model's masks, never notice. Calls from other threads pass through to the user's kernel.
    """

    def __init__(self):
        self.name = f"foveate_{uuid4().hex}"
        self.configs: dict[Any, PretrainedConfig] = {}  # of each tapped attention module, the user's own
        self.reader = 0  # the thread that reads a prompt
        self.edits: Callable[[torch.device], Sequence[Edit]] | None = None  # of the next tapped layer
        self.seen: Callable[[Tensor], Attention] | None = None  # of the last tapped layer
        self.planned: tuple[Sequence[Edit], Plan] | None = None  # for the last edited layer; the next is often its like
        self.filling: Any = None  # the attention module that runs for its keys and values only

    def open(self, modules: Iterable[Any]) -> None:
        """Tap these attention modules for calls from this thread, until `close`."""
        self.close()
        self.reader = threading.get_ident()
        ALL_ATTENTION_FUNCTIONS[self.name] = self.attend  # in this process' local mapping, until `close`
        for module in modules:
            self.configs[module] = module.config
            module.config = self._tapped(module.config)

    def close(self) -> None:
        """Give every config back and forget what was seen."""
        for module, config in self.configs.items():
            module.config = config
        self.configs, self.edits, self.seen = {}, None, None
        if self.name in ALL_ATTENTION_FUNCTIONS:
            del ALL_ATTENTION_FUNCTIONS[self.name]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """An attention function of transformers: the user's own, then remember what went in and came out."""
        if module is self.filling and threading.get_ident() == self.reader:
            raise Filled
        module = self._untapped(module)
        kernel = attention_function(module)
        if threading.get_ident() != self.reader:
            return kernel(module, query, key, value, mask, **kwargs)
        for name in ("softcap", "s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                raise NotImplementedError(
                    f"attention with {name!r} is not plain softmax(QK)V: use a method that reads no attention, like VTW"
                )
        scaling, length = kwargs["scaling"], query.shape[2]

        def first(n: int, value: Tensor = value) -> tuple[Tensor, Any]:
            """The user's kernel on the first n tokens of the prompt."""
            part = mask if mask is None else mask[:, :n] if mask.ndim == 2 else mask[..., :n, :n]
            return kernel(module, query[:, :, :n], key[:, :, :n], value[:, :, :n], part, **kwargs)

        if self.edits is None:
            output, weights = kernel(module, query, key, value, mask, **kwargs)
        else:
            edits = self.edits(query.device)
            plan = self._plan(edits if query.device.type == "cpu" else self.edits(torch.device("cpu")))
            self.edits = None
            if module.config._attn_implementation == "eager":
                output, weights = edited_eager(first(length)[1], value[:, :, :length], edits)
            else:
                output, weights = edited(query, key, value, mask, edits, plan, scaling, lambda *x: first(*x)[0]), None
        if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
            mask = both_ways(mask, query)
        self.seen = lambda real: Attention(query, key, value, output, mask, real, scaling)
        return output, weights

    def fill(self, layer: Any, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Run a decoder layer no further than to its attention: its cache gets the keys and values of `hidden`."""
        self.open([layer.self_attn])
        self.filling = layer.self_attn
        try:
            uncompiled(layer)(hidden, **kwargs)
        except Filled:
            pass
        finally:
            self.filling = None
            self.close()

    def attention(self, real: Tensor) -> Attention | None:
        """What the last tapped layer computed over survivors (`real` (B, M) False on filler); None if none was."""
        return None if self.seen is None else self.seen(real)

    def _plan(self, edits: Sequence[Edit]) -> Plan:
        """How rows fall under these edits (on the host), worked out once for layers in a row that edit the same."""
        if self.planned is None or not alike(self.planned[0], edits):
            self.planned = edits, Plan.of(edits)
        return self.planned[1]

    def _tapped(self, config: PretrainedConfig) -> PretrainedConfig:
        config = copy.copy(config)
        config._attn_implementation_internal = self.name
        return config

    def _untapped(self, module: Any) -> Any:
        """The module as kernels should see it, with the user's config; the same parameters."""
        user = copy.copy(module)
        user.config = self.configs.get(module, module.config)
        return user


def attention_function(module: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The kernel that an attention module's config names; "eager" is a function of its modeling file."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)


def both_ways(mask: Tensor | None, query: Tensor) -> Tensor:
    """The mask, 4-D, of a prompt that is read in both directions: flash attention is told so apart from its mask."""
    if mask is not None and mask.ndim == 4:
        return mask
    batch, _, length, _ = query.shape
    seen = query.new_ones(batch, length, dtype=torch.bool) if mask is None else mask.bool()  # (B, M)
    return seen[:, None, None].expand(-1, 1, length, -1)  # (B, 1, M, M)
