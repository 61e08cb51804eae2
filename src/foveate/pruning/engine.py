"""The engine: hooks that carry a method's decisions into a running model, and take everything back."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from foveate.pruning import compiled, families
from foveate.pruning.cut import causal_mask, pack, prompt_mask, take
from foveate.pruning.guard import always_ending, guard, refuse_labels, shadow
from foveate.pruning.last import leave_keys, may_run_alone, wants_last_token_only
from foveate.pruning.layout import Layout, padding_of
from foveate.pruning.run import Forward, Runs, followed
from foveate.pruning.stages import Prompt, Stage
from foveate.pruning.static import fit, forget, was_reset
from foveate.pruning.tap import Tap
from foveate.pruning.trace import Trace
from foveate.pruning.view import Counts, Decide, Pruner, Selection, View


class Pruned:
    """A model that drops visual tokens while it reads a prompt, until `remove` or the end of a `with` block.

    Attributes:
        trace: what was kept where in the last prompt; None before the first.
    """

    def __init__(self, model: PreTrainedModel, method: Pruner, visual: Tensor | None = None):
        self.given, model = model, families.unwrap(model)
        decoder = families.decoder_of(model)
        if any(isinstance(getattr(hook, "__self__", None), Pruned) for hook in decoder._forward_pre_hooks.values()):
            raise ValueError(
                "this model is being pruned already: leave that `with foveate.prune(...)`, or `.remove()` it"
            )
        self.model, self.method, self.decoder, self.visual = model, method, decoder, visual
        self.trace: Trace | None = None
        self.config = decoder.config
        self.kinds = families.layer_kinds(self.config)
        self.ids = families.visual_ids(model.config)
        self.scaled = families.scales_by_position(self.config)
        if not self.ids and visual is None:
            raise ValueError(
                f"{type(model).__name__} has no token id for images in its config: "
                "say where the visual tokens are with prune(..., visual=mask)"
            )
        if visual is not None and not (isinstance(visual, Tensor) and visual.ndim == 2 and visual.dtype == torch.bool):
            raise ValueError("visual is no (batch, tokens) bool tensor: say for every token whether it is visual")
        depth = len(self.kinds)
        self.cuts = [self._check_layer(layer, 1) for layer in method.cuts(depth)]
        self.edited = [self._check_layer(layer, 0) for layer in method.edited(depth)]
        self.read = {layer - 1 for layer in self.cuts} if method.reads else set()
        if self.read or self.edited:
            families.check_attention(model.config, bool(self.edited))

        self._tap, self._runs = Tap(), Runs()
        self._put_back: Callable[[], None] = lambda: None  # the compiled forwards of layers that are read or edited
        self._one_reader = threading.Lock()  # prompts are read one at a time, whichever threads generate
        self._parameters = list(inspect.signature(model.base_model.forward).parameters)
        self._undo = ExitStack()
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _check_layer(self, layer: Any, first: int) -> int:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise ValueError(f"{self.method.name}: layer {layer!r} is no whole number")
        if not first <= layer < len(self.kinds):
            raise ValueError(
                f"{self.method.name}: layer {layer} is out of range, the decoder has {len(self.kinds)} layers: "
                f"choose {first} to {len(self.kinds) - 1}"
            )
        return layer

    # -- coming and going

    def _install(self) -> None:
        """A call passes the hooks in this order: model (two), base model, decoder, its layers, and the decoder's end.

        Where two of them are one module, as in a bare text model, the order of registration is the order of the hooks.
        """
        compiled.forget_graphs(self.given, self.decoder.layers)
        base, undo = self.model.base_model, self._undo
        undo.callback(compiled.forget_graphs, self.given, self.decoder.layers)
        undo.callback(self._tap.close)
        undo.callback(self.model.register_forward_pre_hook(refuse_labels, with_kwargs=True).remove)
        undo.callback(self.model.register_forward_pre_hook(self._on_call, with_kwargs=True).remove)
        undo.callback(base.register_forward_pre_hook(self._on_model, with_kwargs=True).remove)
        undo.callback(self.decoder.register_forward_pre_hook(self._on_decoder, with_kwargs=True).remove)
        for layer, module in enumerate(self.decoder.layers):
            on_layer = functools.partial(self._on_layer, layer)
            undo.callback(module.register_forward_pre_hook(on_layer, with_kwargs=True).remove)
        for module in (self.decoder, base):
            undo.callback(module.register_forward_hook(self._on_end, always_call=True).remove)
        undo.callback(families.adapt(self.decoder, self._stage_of_prompt))
        undo.callback(shadow(self.model, "forward", always_ending(self.model.forward, self._end)))
        undo.enter_context(guard(self.model, self._runs, self._end))

    def remove(self) -> None:
        """Stop pruning; the model is as it was before. Harmless when repeated. The trace stays.

        Waits for a prompt that another thread is reading, up to a minute.
        """
        self._end()
        free = self._one_reader.acquire(timeout=60)
        try:
            self._undo.close()
        finally:
            if free:
                self._one_reader.release()

    def __enter__(self) -> Pruned:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("a model cannot be copied or pickled while it is pruned: leave `foveate.prune` first")

    # -- what happens in a forward pass, in this order

    def _on_call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """What does the caller want to see?"""
        self._runs.current.last_alone = wants_last_token_only(kwargs, (self.model.config, self.config))

    def _on_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find the visual tokens, by their ids or by the mask that was given."""
        call = dict(zip(self._parameters, args, strict=False)) | kwargs
        ids, embeds = call.get("input_ids"), call.get("inputs_embeds")
        inputs, run = embeds if ids is None else ids, self._runs.current
        run.announced, run.found, run.padding = True, None, padding_of(call.get("attention_mask"))
        if inputs is not None and inputs.numel() == 0:
            raise ValueError("the batch is empty: give at least one prompt of one token")
        if inputs is None or inputs.shape[1] == 1:
            return  # a single token is never an image; decode stays free of data-dependent branches
        if not torch.compiler.is_compiling():
            compiled.check_layers(self.decoder)
        if self.visual is not None:
            run.found = given_visual(self.visual, inputs, call.get("past_key_values"))
        elif ids is not None:
            run.found = functools.reduce(torch.logical_or, [ids == one for one in self.ids])  # (B, L)
        else:
            raise ValueError(
                "inputs_embeds do not show where the visual tokens are: pass input_ids, or prune(..., visual=mask)"
            )

    def _on_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Is this a new prompt, or tokens that follow one?"""
        run = self._runs.current
        visual, padding, length, last_alone = run.found, run.padding, run.prompt, run.last_alone
        if not run.announced:
            raise NotImplementedError(
                f"the decoder was called past {type(self.model.base_model).__name__}.forward, which is where foveate "
                f"sees the visual tokens: call the whole {type(self.model).__name__}"
            )
        self._end()
        cache: Cache | None = kwargs.get("past_key_values")
        prompt = None if cache is None else Prompt.held_by(cache)
        if cache is not None and prompt is not None and was_reset(cache, visual is not None):
            forget(cache)
            prompt = None
        if prompt is not None and cache is not None:
            if visual is not None and length is not None:
                visual = visual[:, : max(length - int(cache.get_seq_length()), 0)]  # a draft may name the placeholder
            if visual is not None and visual.any():
                raise NotImplementedError(
                    "new visual tokens after a pruned prompt: start a new cache with all images in one prompt"
                )
            run.forward = Forward(prompt, padding)
        elif visual is not None:
            sound = all_finite(kwargs.get("inputs_embeds"), visual)
            length = visual.shape[1] if length is None else length
            run.forward = self._new_prompt(visual, padding, cache, length, sound)
            if run.forward is not None:
                alone = last_alone and not run.forward.later and len(self.kinds) - 1 not in self.edited
                run.forward.last_alone = alone and may_run_alone(self.model, self.decoder, cache)

    def _new_prompt(
        self, visual: Tensor, padding: Tensor | None, cache: Cache | None, length: int, sound: Tensor
    ) -> Forward | None:
        """The prompt is the first `length` tokens; a draft or an answer that is read again may follow it."""
        tokens, visual = visual.shape[1], visual[:, :length]
        real = torch.ones_like(visual) if padding is None else padding[:, :length].to(visual.device)
        # all that the host ever has to wait for
        *kinds, finite = torch.stack((visual, real, sound.to(visual.device).expand_as(visual))).cpu()
        host = Layout.of(*kinds)
        counts, prompt = Counts.of(host), Prompt(Layout.of(visual, real))
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0:
            self.trace = Trace(prompt, self.model.config, len(self.kinds))
        if not any(counts.visual):
            return None
        if past > 0:
            raise NotImplementedError(
                "visual tokens after cached text: start a new cache with the images in the first prompt"
            )
        if not finite.all():
            raise ValueError(
                "the prompt's features hold NaN or infinity: look at the pictures and at the dtype (some vision towers "
                "overflow in float16: use bfloat16)"
            )
        if not host.real[:, -1].all():
            raise ValueError("padding on the right hides the last prompt token: pad on the left (padding_side='left')")
        if host.visual[:, -1].any():
            raise ValueError(
                "the prompt ends in an image, and its last token must not be dropped: put text after the image"
            )
        families.check_prompt(self.config, tokens)
        if len(set(self.kinds)) > 1 and getattr(cache, "is_compileable", False):
            raise NotImplementedError(
                f"a static cache of {type(self.model).__name__} has one mask for layers of different lengths: "
                "use the dynamic cache"
            )
        if self.decoder.training and getattr(self.decoder, "gradient_checkpointing", False) and torch.is_grad_enabled():
            raise NotImplementedError(
                "gradient checkpointing runs layers again without the rest of the pass: call model.eval() or "
                "model.gradient_checkpointing_disable()"
            )
        self._one_reader.acquire()
        self._runs.current.reading = True
        self._put_back = compiled.set_aside(self.decoder.layers[layer] for layer in self.read | set(self.edited))
        return Forward(prompt, padding, self.method.start(), host, counts, tokens - visual.shape[1])

    def _on_layer(
        self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict] | None:
        """Cut what enters the layer, and make mask and rope fit."""
        forward = self._runs.current.forward
        if forward is None:
            return None
        hidden: Tensor = args[0]
        cache: Any = kwargs.get("past_key_values")
        reading = forward.decide is not None
        if forward.decide is not None and forward.counts is not None:
            if layer in self.cuts and any(forward.counts.visual):
                hidden = self._cut(forward, forward.decide, forward.counts, layer, hidden, cache)
            self._tap.close()  # the queries, keys and values of the layer before are read, or never will be
            if layer in self.edited or (layer in self.read and any(forward.counts.visual)):
                self._tap.open([module.self_attn])
            if layer in self.edited:
                self._tap.edits = lambda device: [
                    edit.followed(forward.later) for edit in self.method.edits(layer, forward.layout_on(device))
                ]
        else:
            for stage in forward.prompt.stages:
                if stage.layer == layer:
                    forward.enter(stage)
        stage, kind = forward.stage, self.kinds[layer]
        if stage is None:
            return None
        if kind not in forward.shared:
            mask, rope = kwargs["attention_mask"], kwargs["position_embeddings"]
            if reading:
                index, valid = forward.columns(stage)
                mask = self._prompt_mask(index, valid, mask, layer, hidden, cache)
                rope = tuple(take(x, index, -2) for x in rope)  # survivors keep their positions
            else:
                mask = self._later_mask(forward, stage, layer, hidden, cache)
            forward.shared[kind] = mask, rope
        mask, rope = forward.shared[kind]
        positions = kwargs.get("position_ids")
        if reading and not self.scaled:
            positions = None  # only flash attention reads them, and would take their gaps for packed sequences
        elif reading and positions is not None:
            positions = take(positions, forward.columns(stage)[0], -1)
        fitting = kwargs | {"attention_mask": mask, "position_embeddings": rope, "position_ids": positions}
        if forward.last_alone and layer == len(self.kinds) - 1 and hidden.shape[1] > 1:
            hidden, fitting = leave_keys(self._tap, module, hidden, fitting)
            cache = fitting["past_key_values"]
            fitting["attention_mask"] = causal_mask(self.config, kind, hidden, stage.valid, cache, layer)
            forward.stage, forward.prompt.last_alone = stage.last, True
        return (hidden, *args[1:]), fitting

    def _cut(
        self, forward: Forward, decide: Decide, counts: Counts, layer: int, hidden: Tensor, cache: Cache | None
    ) -> Tensor:
        """Ask the method, and drop from `hidden` (B, M, D) what it does not keep."""
        layout, length = forward.layout.to(hidden.device), hidden.shape[1] - forward.later
        if forward.stage is None:
            index = torch.arange(length, device=hidden.device).expand(len(hidden), -1)  # (B, M)
        else:
            index = forward.stage.index.to(hidden.device)
        attention = self._tap.attention(layout.real) if self.method.reads else None
        keep = decide(View(layer, layout, counts, index, hidden[:, :length], attention))
        if attention is not None:
            forward.prompt.scored[layer - 1] = attention.scored
        if keep is None:
            return hidden
        mask, kept = keep if isinstance(keep, Selection) else (keep, (keep & layout.visual).sum(1).tolist())
        if kept == counts.visual:
            return hidden
        survivors = layout.real & (mask | ~layout.visual)
        forward.counts = counts.keeping(kept)
        local, valid = pack(survivors, forward.counts.real)
        stage = Stage(layer, index.gather(1, local), valid, layout.take(local, valid))
        forward.enter(stage)
        forward.prompt.stages.append(stage)
        if not any(kept) and layer > max(self.edited, default=0):
            self._put_back()  # nothing will be read or edited any more
        if cache is not None:
            forward.prompt.hold(cache)
            fit(cache, stage, forward.prompt.length)
        return take(hidden, followed(local, length, forward.later), 1)

    def _prompt_mask(
        self, index: Tensor, valid: Tensor | None, given: Any, layer: int, hidden: Tensor, cache: Cache | None
    ) -> Tensor | None:
        """The attention mask among the survivors of a prompt, and whatever was read together with it."""
        if isinstance(given, Tensor) and given.ndim == 4:
            keys = hidden.shape[1] if cache is None else cache.get_mask_sizes(hidden.shape[1], layer)[0]
            return prompt_mask(given[..., : given.shape[-2]], index, valid, keys)
        return causal_mask(self.config, self.kinds[layer], hidden, valid, cache, layer)

    def _later_mask(self, forward: Forward, stage: Stage, layer: int, hidden: Tensor, cache: Cache) -> Tensor | None:
        """The attention mask of tokens that follow a prompt, over its survivors and themselves."""
        if stage.valid is not None and len(stage.valid) != len(hidden):
            raise NotImplementedError(
                f"{len(stage.valid)} prompts were pruned and {len(hidden)} rows go on: start a new cache for them, "
                "or expand the prompts before (num_return_sequences)"
            )
        length, held = forward.prompt.length, cache.get_seq_length(layer)
        if isinstance(held, int):
            new = held + hidden.shape[1] - stage.index.shape[1]
            families.check_prompt(self.config, length + new)
        else:  # of a static cache the mask covers all there is, and the tokens to come hide behind causality
            new = cache.get_mask_sizes(hidden.shape[1], layer)[0] - stage.index.shape[1]
        return causal_mask(
            self.config, self.kinds[layer], hidden, stage.real(forward.padding, length, new), cache, layer
        )

    def _on_end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._end()

    def _end(self) -> None:
        """This thread is in no forward pass, or has left it."""
        run = self._runs.current
        run.found = run.padding = run.forward = None
        run.announced = run.last_alone = False
        if run.reading:
            run.reading = False
            self._tap.close()
            self._tap.planned = None
            self._put_back()
            self._one_reader.release()

    def _stage_of_prompt(self) -> Stage | None:
        forward = self._runs.current.forward
        return None if forward is None else forward.stage


def all_finite(embeds: Tensor | None, like: Tensor) -> Tensor:
    """One bool, left on its device: whether the embeddings (B, L, D) of a prompt are numbers."""
    return like.new_ones(()) if embeds is None else embeds.isfinite().all()


def given_visual(visual: Tensor, inputs: Tensor, cache: Cache | None) -> Tensor | None:
    """The user's mask (b, L) of visual positions, for inputs (B, L) or (B, L, D); None if these follow a prompt.

    Raises:
        ValueError: it does not fit.
    """
    batch, length = inputs.shape[:2]
    if cache is not None and int(cache.get_seq_length()) > 0:
        return None
    if length != visual.shape[1] or batch % visual.shape[0]:
        shape = tuple(visual.shape)
        raise ValueError(f"visual has the shape {shape}, the prompt {batch, length}: give one entry for each token")
    return visual.to(inputs.device).bool().repeat_interleave(batch // visual.shape[0], 0)
