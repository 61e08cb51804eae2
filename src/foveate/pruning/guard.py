"""Calls that cannot be right while visual tokens are dropped, refused before they compute anything."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def guard(model: PreTrainedModel, rows_matter: bool, end: Callable[[], None]) -> ExitStack:
    """Shadow `generate` and continuous batching on this one model with versions that check first; closing undoes it.

    Args:
        rows_matter: whether the method looks at rows of the prompt, and must not be shown drafted tokens.
        end: called whenever `generate` is left.
    """
    undo = ExitStack()
    generate: Any = getattr(model, "generate", None)
    if generate is not None:
        undo.callback(shadow(model, "generate", checked_generate(model, generate, rows_matter, end)))
    for name in ("generate_batch", "init_continuous_batching"):
        if hasattr(model, name):
            undo.callback(shadow(model, name, refuse_continuous_batching))
    return undo


def checked_generate(
    model: PreTrainedModel, generate: Callable[..., Any], rows_matter: bool, end: Callable[[], None]
) -> Callable[..., Any]:
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        check_generate(given, given.get("generation_config") or model.generation_config, rows_matter)
        try:
            return generate(*args, **kwargs)
        finally:
            end()  # a hook cannot: torch runs none after a KeyboardInterrupt, and other threads would wait for ever

    return checked


def check_generate(given: dict[str, Any], config: Any, rows_matter: bool) -> None:
    """Refuse ways of generating in which a method does not see the prompt, the whole prompt and nothing but the prompt.

    Raises:
        NotImplementedError: no KV cache, so that every new token would select again; a prefill in chunks; assisted
            decoding, which reads the prompt together with drafted tokens.
    """

    def setting(name: str) -> Any:
        value = given.get(name)
        return getattr(config, name, None) if value is None else value

    if setting("use_cache") is False:
        raise NotImplementedError("without a KV cache every new token would prune again: set use_cache=True")
    chunk = setting("prefill_chunk_size")
    prompt = given.get("inputs", given.get("input_ids", given.get("inputs_embeds")))
    if chunk is not None and (prompt is None or chunk < prompt.shape[1]):
        raise NotImplementedError(
            f"prefill_chunk_size={chunk} splits the prompt, and a method has to see all of it: "
            "set prefill_chunk_size=None"
        )
    drafts = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
    if rows_matter and (drafting := [name for name in drafts if setting(name)]):
        raise NotImplementedError(
            f"assisted decoding ({drafting[0]}) reads the prompt together with drafted tokens, which the method would "
            "take for the question: generate without it, or use a method that reads no attention, like VTW"
        )


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
    before = vars(owner).get(name, absent)
    vars(owner)[name] = value

    def restore() -> None:
        if before is absent:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = before

    return restore
