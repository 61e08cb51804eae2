"""The engine: hooks that carry a method's decisions into a running model, and take everything back."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from foveate.pruning import families
from foveate.pruning.cut import causal_mask, pack, prompt_mask, take
from foveate.pruning.guard import guard, refuse_labels
from foveate.pruning.layout import Layout, padding_of
from foveate.pruning.stages import Prompt, Stage, Trace
from foveate.pruning.tap import Tap
from foveate.pruning.view import Decide, Pruner, View


@dataclass(eq=False)
class Forward:
    """One pass through the decoder over a pruned prompt, or over tokens that follow one.

    Attributes:
        prompt: the prompt.
        padding: (B, kv) bool, False on padding; None if there is none.
        decide: the method's decision while the prompt is read; None afterwards.
        counts: real tokens of each row at the layer that runs; texts: those that are not visual.
        stage: in force at the layer that runs; None: nothing has been dropped.
        shared: mask and rope of the stage, by kind of layer.
    """

    prompt: Prompt
    padding: Tensor | None
    decide: Decide | None = None
    counts: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    stage: Stage | None = None
    shared: dict[str, tuple[Tensor | None, tuple[Tensor, ...]]] = field(default_factory=dict)

    def enter(self, stage: Stage) -> None:
        self.stage, self.shared = stage, {}

    @property
    def layout(self) -> Layout:
        return self.prompt.layout if self.stage is None else self.stage.layout


class Run:
    """Where one thread is in its forward pass.

    Attributes:
        found: (B, L) bool, visual positions of the call that has reached the model and not yet its decoder.
        padding: (B, kv) bool, False on padding, of that call.
        forward: the pass through the decoder; None outside, or if nothing is pruned.
        reading: a prompt is being read, so this thread holds the tap.
    """

    found: Tensor | None = None
    padding: Tensor | None = None
    forward: Forward | None = None
    reading: bool = False


class ThreadRun(threading.local, Run):
    """A `Run` for each thread."""


class Pruned:
    """A model that drops visual tokens while it reads a prompt, until `remove` or the end of a `with` block.

    Attributes:
        trace: what was kept where in the last prompt; None before the first.
    """

    def __init__(self, model: PreTrainedModel, method: Pruner, visual: Tensor | None = None):
        self.given, model = model, getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
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
        if not self.ids and visual is None:
            raise ValueError(
                f"{type(model).__name__} has no token id for images in its config: "
                "say where the visual tokens are with prune(..., visual=mask)"
            )
        depth = len(self.kinds)
        self.cuts = [self._check_layer(layer, 1) for layer in method.cuts(depth)]
        self.edited = [self._check_layer(layer, 0) for layer in method.edited(depth)]
        read = {layer - 1 for layer in self.cuts} if method.reads else set()
        self.tapped = [decoder.layers[layer].self_attn for layer in sorted(read | set(self.edited))]

        self.tap = Tap()
        self._one_reader = threading.Lock()  # prompts are read one at a time, whichever threads generate
        self._of_thread, self._compiling = ThreadRun(), Run()
        self._undo: list[Callable[[], None]] = []
        self._install()

    def _check_layer(self, layer: int, first: int) -> int:
        if not first <= layer < len(self.kinds):
            raise ValueError(
                f"{self.method.name}: layer {layer} is out of range, the decoder has {len(self.kinds)} layers: "
                f"choose {first} to {len(self.kinds) - 1}"
            )
        return layer

    # -- coming and going

    def _install(self) -> None:
        forget_compiled(self.given)
        hook = functools.partial(_hook, self._undo)
        hook(self.model.register_forward_pre_hook(refuse_labels, with_kwargs=True))
        hook(self.model.base_model.register_forward_pre_hook(self._on_model, with_kwargs=True))
        hook(self.decoder.register_forward_pre_hook(self._on_decoder, with_kwargs=True))
        hook(self.decoder.register_forward_hook(self._on_end, always_call=True))
        for layer, module in enumerate(self.decoder.layers):
            hook(module.register_forward_pre_hook(functools.partial(self._on_layer, layer), with_kwargs=True))
        self._undo += [families.adapt(self.decoder, self._stage_of_prompt), guard(self.model, self._end), self._end]

    def remove(self) -> None:
        """Stop pruning; the model is as it was before. Harmless when repeated. The trace stays."""
        if not self._undo:
            return
        while self._undo:
            self._undo.pop()()
        forget_compiled(self.given)

    def __enter__(self) -> Pruned:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("a model cannot be copied or pickled while it is pruned: leave `foveate.prune` first")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()

    # -- what happens in a forward pass, in this order

    def _on_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find the visual tokens by their ids."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        run = self._run
        run.found, run.padding = None, padding_of(kwargs.get("attention_mask"))
        if ids is not None and self.visual is None:
            if ids.shape[1] > 1:  # a single token is never an image; decode stays free of data-dependent branches
                run.found = torch.isin(ids, torch.tensor(self.ids, device=ids.device))  # (B, L)
        elif self.visual is not None:
            inputs = ids if ids is not None else kwargs["inputs_embeds"]
            run.found = self._given_visual(inputs, kwargs.get("past_key_values"))
        elif kwargs.get("inputs_embeds") is not None and kwargs["inputs_embeds"].shape[1] > 1:
            raise ValueError(
                "inputs_embeds do not show where the visual tokens are: pass input_ids, or prune(..., visual=mask)"
            )

    def _given_visual(self, inputs: Tensor, cache: Cache | None) -> Tensor | None:
        batch, length = inputs.shape[:2]
        if cache is not None and int(cache.get_seq_length()) > 0:
            return None  # these tokens follow the prompt that was meant
        if length != self.visual.shape[1] or batch % self.visual.shape[0]:
            given = tuple(self.visual.shape)
            raise ValueError(f"visual has the shape {given}, the prompt {batch, length}: give one entry for each token")
        return self.visual.to(inputs.device).bool().repeat_interleave(batch // self.visual.shape[0], 0)

    def _on_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Is this a new prompt, or tokens that follow one?"""
        self._end()
        run = self._run
        visual, padding = run.found, run.padding
        run.found = run.padding = None
        cache: Cache | None = kwargs.get("past_key_values")
        prompt = Prompt.held_by(cache)
        if prompt is not None and not torch.compiler.is_compiling() and int(cache.get_seq_length()) == 0:
            prompt = None  # the cache was reset for another prompt
        if prompt is not None:
            if visual is not None and visual.any():
                raise NotImplementedError(
                    "new visual tokens after a pruned prompt: start a new cache with all images in one prompt"
                )
            run.forward = Forward(prompt, padding)
        elif visual is not None:
            run.forward = self._new_prompt(visual, padding, cache)

    def _new_prompt(self, visual: Tensor, padding: Tensor | None, cache: Cache | None) -> Forward | None:
        length = visual.shape[1]
        real = torch.ones_like(visual) if padding is None else padding[:, :length].to(visual.device)
        layout = Layout.of(visual, real)
        facts = [layout.visual.sum(1), (real & ~visual).sum(1), real[:, -1], layout.visual[:, -1]]
        seen, texts, ends, pictures_end = torch.stack(
            [fact.long() for fact in facts]
        ).tolist()  # the one look at the device
        prompt, past = Prompt(layout), 0 if cache is None else int(cache.get_seq_length())
        if past == 0:
            self.trace = Trace(prompt, self.model.config, len(self.kinds))
        if not any(seen):
            return None
        if past > 0:
            raise NotImplementedError(
                "visual tokens after cached text: start a new cache with the images in the first prompt"
            )
        if not all(ends):
            raise ValueError("padding on the right hides the last prompt token: pad on the left (padding_side='left')")
        if any(pictures_end):
            raise ValueError(
                "the prompt ends in an image, and its last token must not be dropped: put text after the image"
            )
        families.check_prompt(self.config, length)
        if len(set(self.kinds)) > 1 and getattr(cache, "is_compileable", False):
            raise NotImplementedError(
                f"a static cache of {type(self.model).__name__} has one mask for layers of different lengths: "
                "use the dynamic cache"
            )
        self._one_reader.acquire()
        self._run.reading = True
        self.tap.open(self.tapped)
        counts = [image + text for image, text in zip(seen, texts, strict=True)]
        return Forward(prompt, padding, self.method.start(), counts, texts)

    def _on_layer(
        self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict] | None:
        """Cut what enters the layer, and make mask and rope fit."""
        forward = self._run.forward
        if forward is None:
            return None
        hidden, cache = args[0], kwargs.get("past_key_values")
        reading = forward.decide is not None
        if reading:
            if layer in self.cuts and forward.counts != forward.texts:
                hidden = self._cut(forward, layer, hidden, cache)
            if layer in self.edited:
                layout = forward.layout
                self.tap.edits = lambda device: self.method.edits(layer, layout.to(device))
        else:
            for stage in forward.prompt.stages:
                if stage.layer == layer:
                    forward.enter(stage)
        if forward.stage is None:
            return None
        kind = self.kinds[layer]
        if kind not in forward.shared:
            mask = self._mask(forward, kwargs["attention_mask"], layer, hidden, cache)
            rope = kwargs["position_embeddings"]
            if reading:
                rope = tuple(take(x, forward.stage.index, -2) for x in rope)  # survivors keep their positions
            forward.shared[kind] = mask, rope
        mask, rope = forward.shared[kind]
        # position_ids: only flash attention reads them, and would take their gaps for packed sequences
        positions = None if reading else kwargs.get("position_ids")
        return (hidden, *args[1:]), {
            **kwargs,
            "attention_mask": mask,
            "position_embeddings": rope,
            "position_ids": positions,
        }

    def _cut(self, forward: Forward, layer: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """Ask the method, and drop from `hidden` (B, M, D) what it does not keep."""
        layout, before = forward.layout.to(hidden.device), forward.stage
        index = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)  # (B, M)
        if before is not None:
            index = before.index.to(hidden.device)
        seen = self.tap.attention(layout.real)
        keep = forward.decide(View(layer, layout, index, hidden, seen))
        if seen is not None:
            forward.prompt.scored[layer - 1] = seen.scored
            self.tap.seen = None  # frees that layer's queries, keys and values
        if keep is None:
            return hidden
        survivors = layout.real & (keep | ~layout.visual)
        counts: list[int] = survivors.sum(1).tolist()
        if counts == forward.counts:
            return hidden
        local, valid = pack(survivors, counts)
        stage = Stage(layer, index.gather(1, local), valid, layout.take(local, valid))
        forward.counts = counts
        forward.enter(stage)
        forward.prompt.stages.append(stage)
        if cache is not None:
            forward.prompt.hold(cache)
        return take(hidden, local, 1)

    def _mask(self, forward: Forward, given: Any, layer: int, hidden: Tensor, cache: Cache | None) -> Tensor | None:
        """The attention mask of a layer that runs on survivors."""
        stage, length = forward.stage, forward.prompt.length
        if forward.decide is not None:
            if isinstance(given, Tensor) and given.ndim == 4 and given.shape[-1] == length:
                return prompt_mask(given, stage.index, stage.valid)
            real = stage.valid
        else:
            if stage.valid is not None and len(stage.valid) != len(hidden):
                raise NotImplementedError(
                    f"a batch of {len(stage.valid)} prompts was pruned and {len(hidden)} rows go on: keep it as it was"
                )
            new = hidden.shape[1] + cache.get_seq_length(stage.layer) - stage.index.shape[1]
            if isinstance(new, int):
                families.check_prompt(self.config, length + new)
            real = stage.real(forward.padding, length, new)
        return causal_mask(self.config, self.kinds[layer], hidden, real, cache, layer)

    def _on_end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._end()

    def _end(self) -> None:
        """Leave the decoder, if this thread is in it."""
        run = self._run
        run.forward = None
        if run.reading:
            run.reading = False
            self.tap.close()
            self._one_reader.release()

    def _stage_of_prompt(self) -> Stage | None:
        forward = self._run.forward
        return None if forward is None else forward.stage

    @property
    def _run(self) -> Run | ThreadRun:
        """This thread's; a graph that is being compiled has its own, since it cannot look at thread-local things."""
        return self._compiling if torch.compiler.is_compiling() else self._of_thread


def forget_compiled(model: nn.Module) -> None:
    """Drop the model's compiled graphs: torch.compile does not watch hooks and would reuse one made without them."""
    if any(is_compiled(module) for module in model.modules()):
        torch._dynamo.reset()


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was used on this module: on itself, its call, its forward, or by `generate`."""
    return (
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        or "_compiled_call" in vars(module)
    )


def _hook(undo: list[Callable[[], None]], handle: torch.utils.hooks.RemovableHandle) -> None:
    undo.append(handle.remove)
