"""Calls that cannot be right while visual tokens are dropped, refused before they compute anything."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from foveate.pruning import families
from foveate.pruning.run import Runs


def guard(model: PreTrainedModel, runs: Runs, end: Callable[[], None]) -> ExitStack:
    """Shadow `generate` and continuous batching on this one model with versions that check first; closing undoes it.

    Args:
        runs: are told how long the prompt is.
        end: called whenever `generate` is left.
    """
    undo = ExitStack()
    generate: Any = getattr(model, "generate", None)
    if generate is not None:
        undo.callback(shadow(model, "generate", checked_generate(model, generate, runs, end)))
    for name in ("generate_batch", "init_continuous_batching"):
        if hasattr(model, name):
            undo.callback(shadow(model, name, refuse_continuous_batching))
    return undo


def checked_generate(
    model: PreTrainedModel, generate: Callable[..., Any], runs: Runs, end: Callable[[], None]
) -> Callable[..., Any]:
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        prompt = next((given[n] for n in ("inputs", "input_ids", "inputs_embeds") if given.get(n) is not None), None)
        length = None if prompt is None else prompt.shape[1]
        check_generate(model, given, given.get("generation_config") or model.generation_config, length)
        run, before = runs.current, runs.current.prompt  # of an outer one, if a model drafts for itself
        run.prompt = length
        try:
            return generate(*args, **kwargs)
        finally:
            run.prompt = before
            end()

    return checked


def always_ending(forward: Callable[..., Any], end: Callable[[], None]) -> Callable[..., Any]:
    """A model's forward that calls `end` however it is left.

    A hook cannot: torch runs none after a KeyboardInterrupt, and other threads would wait for ever.
    """

    @functools.wraps(forward)
    def ending(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        finally:
            end()

    return ending


def check_generate(model: PreTrainedModel, given: dict[str, Any], config: Any, length: int | None) -> None:
    """Refuse ways of generating in which a method does not see the whole prompt, or sees more than the prompt.

    Raises:
        NotImplementedError: a prefill in chunks; a model whose prompt sees what follows it, without a KV cache or with
            drafts.
    """

    def setting(name: str) -> Any:
        value = given.get(name)
        return getattr(config, name, None) if value is None else value

    chunk = setting("prefill_chunk_size")
    if chunk is not None and (length is None or chunk < length):
        raise NotImplementedError(
            f"prefill_chunk_size={chunk} splits the prompt, and a method has to see all of it: "
            "set prefill_chunk_size=None"
        )
    if model.config.model_type in families.PREFIX_MODELS:
        if setting("use_cache") is False:
            raise NotImplementedError("without a KV cache the prompt of this model sees its answer: set use_cache=True")
        drafts = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
        if drafting := [name for name in drafts if setting(name)]:
            raise NotImplementedError(
                f"assisted decoding ({drafting[0]}): the prompt of this model sees the draft that follows it: "
                "generate without it"
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
