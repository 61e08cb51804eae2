"""Calls that cannot be right while visual tokens are dropped, refused before they compute anything."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def guard(model: PreTrainedModel, end: Callable[[], None]) -> Callable[[], None]:
    """Shadow `generate` and `generate_batch` on this one model with versions that check first; returns the undo.

    The checked `generate` raises NotImplementedError for a prefill in chunks, since a method has to see the whole
    prompt, and for `use_cache=False`, since every new token would select again. Continuous batching packs all prompts
    into one row with one length for all layers, so it is refused altogether. `end` is called when `generate` is left.
    """
    undo = []
    if callable(getattr(model, "generate", None)):
        undo.append(shadow(model, "generate", checked_generate(model, model.generate, end)))
    for name in ("generate_batch", "init_continuous_batching"):
        if hasattr(model, name):
            undo.append(shadow(model, name, refuse_continuous_batching))

    def restore() -> None:
        for action in undo:
            action()

    return restore


def checked_generate(
    model: PreTrainedModel, generate: Callable[..., Any], end: Callable[[], None]
) -> Callable[..., Any]:
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        config = given.get("generation_config") or model.generation_config
        if given.get("use_cache", getattr(config, "use_cache", None)) is False:
            raise NotImplementedError("without a KV cache every new token would prune again: set use_cache=True")
        chunk = given.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        prompt = given.get("inputs", given.get("input_ids", given.get("inputs_embeds")))
        if chunk is not None and (prompt is None or chunk < prompt.shape[1]):
            raise NotImplementedError(
                f"prefill_chunk_size={chunk} splits the prompt, and a method has to see all of it: "
                "set prefill_chunk_size=None"
            )
        try:
            return generate(*args, **kwargs)
        finally:
            end()  # a hook cannot: torch runs none after a KeyboardInterrupt, and other threads would wait for ever

    return checked


def refuse_continuous_batching(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(
        "continuous batching keeps one length for all layers, so no layer can drop tokens: "
        "use model.generate on padded batches"
    )


def refuse_labels(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A forward pre-hook: a loss over a sequence that got shorter on the way cannot be right."""
    if isinstance(kwargs.get("labels"), Tensor):
        raise ValueError(
            "labels do not fit a prompt whose tokens are dropped: compute the loss outside `foveate.prune`"
        )


def shadow(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute on this one object; returns what puts back the state before."""
    absent = object()
    before = owner.__dict__.get(name, absent)
    owner.__dict__[name] = value

    def restore() -> None:
        if before is absent:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = before

    return restore
