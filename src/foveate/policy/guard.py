"""The guard: after the pruned prompt, rows whose first token is too uncertain run again, before anything is said.

It happens inside the forward pass that reads the prompt, so `model.generate` is the user's own. Layers before the first
cut were dense anyway: only those from there on run again, and only for the rows that need it. Their keys, values and
last hidden state replace the pruned ones, and decoding goes on with a cache in which some rows are whole.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from foveate import cost
from foveate.policy.entry import Guard
from foveate.pruning.engine import Pruned
from foveate.pruning.layout import Layout
from foveate.pruning.stages import Prompt, Stage
from foveate.pruning.trace import Trace
from foveate.pruning.view import Pruner

SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # what a head may do to its logits


class GuardedTrace(Trace):
    """The trace of a guarded prompt: rows that ran again hold all their tokens, and `flops` counts both runs.

    Attributes:
        again: for each sample whether it ran again.
    """

    def __init__(self, pruned: Trace, prompt: Prompt, again: list[bool], first: int):
        super().__init__(prompt, pruned._config, pruned._layers)
        self.again, self._pruned, self._first = again, pruned, first

    @property
    def flops(self) -> int:
        whole = [n for n, again in zip(self.prompt, self.again, strict=True) if again]
        dense = cost.prefill(self._config, [whole] * self._layers, images=0)
        return self._pruned.flops + dense.decoder * (self._layers - self._first) // self._layers + dense.head

    def __str__(self) -> str:
        return f"{super().__str__()}\n{sum(self.again)} of {len(self.again)} samples ran again without pruning"

    __repr__ = __str__


@dataclass(eq=False)
class Noted:
    """What entered the layers of a pruned prompt, kept until its end.

    hidden: (B, L, D), what entered the first layer that pruning touches. given: each later layer's own arguments.
    """

    prompt: Prompt
    hidden: Tensor
    given: dict[int, dict[str, Any]] = field(default_factory=dict)


class Notes(threading.local):
    """The prompt that a thread reads."""

    noted: Noted | None = None


class Kept:
    """Stands in for a layer's cache: keeps the keys and values of a run, and shows the layer nothing else."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.key, self.value = key, value
        return key, value


class Guarded(Pruned):
    """A model pruned under a guard: see `foveate.policy.Guard`. The trace tells which samples ran again."""

    def __init__(self, model: PreTrainedModel, method: Pruner, guard: Guard, visual: Tensor | None = None):
        """Raises NotImplementedError for a model whose layers cannot run again alone, or that scales its logits."""
        self.guard, self._notes = guard, Notes()
        super().__init__(model, method, visual)

    def _install(self) -> None:
        text = self.config
        if any(getattr(text, name, None) not in (None, 1, 1.0) for name in SCALED):
            raise NotImplementedError(
                f"{type(self.model).__name__} scales its logits, and a guard does not: use a policy without one"
            )
        if hasattr(self.decoder, "_deepstack_process"):
            raise NotImplementedError(
                f"{type(self.model).__name__} adds visual features between its layers, so they cannot run again by "
                "themselves: use a policy without a guard"
            )
        super()._install()
        self._first = min([*self.cuts, *self.edited], default=len(self.kinds))
        for layer in range(self._first, len(self.kinds)):
            module = self.decoder.layers[layer]
            hook = module.register_forward_pre_hook(self._noter(layer), with_kwargs=True, prepend=True)
            self._undo.callback(hook.remove)
        self._undo.callback(self.decoder.register_forward_hook(self._check).remove)

    @property
    def again(self) -> list[bool]:
        """For each sample of the last prompt whether it ran again; empty before the first."""
        none = [] if self.trace is None else [False] * len(self.trace.prompt)
        return getattr(self.trace, "again", none)

    def _on_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._notes.noted = None  # of a prompt that an error has ended
        super()._on_decoder(module, args, kwargs)

    def _noter(self, layer: int) -> Any:
        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            forward = self._runs.current.forward
            if forward is None or forward.decide is None:
                return
            if layer == self._first:
                if torch.compiler.is_compiling():
                    raise NotImplementedError("a guard decides while the model runs: do not compile the prompt's pass")
                if kwargs.get("past_key_values") is None or forward.later:
                    raise NotImplementedError(
                        "a guard needs the prompt alone and a KV cache: generate with use_cache=True and no assistant"
                    )
                self._notes.noted = Noted(forward.prompt, args[0])
            if self._notes.noted is not None:
                self._notes.noted.given[layer] = kwargs

        return note

    def _check(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After the decoder's last layer: rows that are too uncertain run again, and take the place of the pruned."""
        noted, self._notes.noted = self._notes.noted, None
        if noted is not None and not hasattr(output, "last_hidden_state"):
            raise NotImplementedError(
                "a guard needs the decoder's output by name: call the model with return_dict=True"
            )
        if noted is None or self.trace is None or len(noted.given) < len(self.kinds) - self._first:
            return
        if not noted.prompt.stages and not self.edited:
            return  # nothing was dropped: this is the dense answer
        last: Tensor = output.last_hidden_state
        below = self._signal(last[:, -1]) < self.guard.threshold  # (B,)
        before = Prompt(noted.prompt.layout, list(noted.prompt.stages), dict(noted.prompt.scored))
        pruned = Trace(before, self.model.config, len(self.kinds))
        again = below.tolist()
        if any(again):
            rows = below.nonzero().flatten()
            last = last.clone()
            last[rows, -1] = self._run_again(noted, rows)
            output.last_hidden_state = last
        self.trace = GuardedTrace(pruned, noted.prompt, again, self._first)

    def _signal(self, hidden: Tensor) -> Tensor:
        """How certain the first token is, (B,), from the last hidden states (B, D) after the final norm."""
        head: Any = self.model.get_output_embeddings()
        logp = log_softmax(head(hidden).float(), -1)  # (B, V)
        if self.guard.signal == "margin":
            best, second = logp.topk(2).values.unbind(-1)
            return best - second
        return (logp.exp() * logp).nan_to_num(0.0).sum(-1)

    def _run_again(self, noted: Noted, rows: Tensor) -> Tensor:
        """Run rows (b,) dense from the first touched layer on, put them into the cache; their last states (b, D)."""
        batch, length = noted.hidden.shape[:2]
        cache = noted.given[self._first]["past_key_values"]
        check_cache(cache, length)

        def part(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(part(y) for y in x)
            if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != batch:
                return x
            return x[rows.to(x.device)]

        hidden = noted.hidden[rows.to(noted.hidden.device)]
        for layer in range(self._first, len(self.kinds)):
            given = {name: part(x) for name, x in noted.given[layer].items()}
            kept = given["past_key_values"] = Kept()
            hidden = self.decoder.layers[layer](hidden, **given)
            replace_rows(cache.layers[layer], kept, rows, length)
        noted.prompt.stages[:] = [with_whole_rows(stage, noted.prompt.layout, rows) for stage in noted.prompt.stages]
        return self.decoder.norm(hidden[:, -1:])[:, 0]


def check_cache(cache: Any, length: int) -> None:
    """Refuse a cache in which rows cannot be replaced."""
    for layer in cache.layers:
        sliding = type(layer) is DynamicSlidingWindowLayer and length < layer.sliding_window
        if type(layer) is not DynamicLayer and not sliding:
            raise NotImplementedError(
                f"a guard cannot replace rows in a {type(layer).__name__}: use the dynamic cache (DynamicCache)"
            )


def replace_rows(layer: Any, kept: Kept, rows: Tensor, length: int) -> None:
    """Put the keys and values (b, H, L, d) of some rows into a cache layer (B, H, M, d), which becomes L long."""
    assert kept.key is not None and kept.value is not None
    for name, new in (("keys", kept.key), ("values", kept.value)):
        old = getattr(layer, name)
        wide = pad(old, (0, 0, 0, length - old.shape[2]))  # (B, H, L, d)
        wide[rows.to(wide.device)] = new.to(wide.dtype)
        setattr(layer, name, wide)
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = length


def with_whole_rows(stage: Stage, layout: Layout, rows: Tensor) -> Stage:
    """A stage in which some rows hold the whole prompt; the others are filled up to its length."""
    length = layout.visual.shape[1]
    more = length - stage.index.shape[1]
    rows = rows.to(stage.index.device)
    valid = torch.ones_like(stage.index, dtype=torch.bool) if stage.valid is None else stage.valid
    index, valid = pad(stage.index, (0, more)), pad(valid, (0, more))  # (B, L)
    index[rows], valid[rows] = torch.arange(length, device=index.device), layout.real.to(index.device)[rows]
    masks = {}
    for name in (one.name for one in fields(Layout)):
        wide = pad(getattr(stage.layout, name), (0, more), value=-1 if name == "image" else False)
        here = rows.to(wide.device)
        wide[here] = getattr(layout, name).to(wide.device)[here]
        masks[name] = wide
    return Stage(stage.layer, index, valid, Layout(**masks))
