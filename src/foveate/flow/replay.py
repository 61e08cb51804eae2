"""One dense pass over a batch of prompts, recorded; parts of it can be run again with something changed.

A replay starts at the layer where the change is, from the hidden states that entered it, and computes only the rows
that can change. It always runs on an explicit 4-D mask and a kernel that obeys one, so a blocked edge is blocked under
every attention implementation that the user may have chosen.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foveate.flow.samples import Batch
from foveate.pruning import families
from foveate.pruning.attention import Attention, allowed
from foveate.pruning.compiled import set_aside
from foveate.pruning.cut import take
from foveate.pruning.layout import Layout
from foveate.pruning.tap import Tap

T = TypeVar("T")
OBEY = ("eager", "sdpa")  # kernels that honour a 4-D mask; all others are replaced in a replay


def decoder_of(model: PreTrainedModel) -> Any:
    """The module whose `layers` the prompt runs through; raises NotImplementedError where there is none."""
    return families.decoder_of(model)


def depth_of(model: PreTrainedModel) -> int:
    """How many decoder layers there are."""
    return len(decoder_of(model).layers)


@contextmanager
def watch(decoder: Any, real: Tensor, see: Callable[[int, Attention], None]) -> Iterator[None]:
    """Show `see` every layer's attention as soon as the layer has computed it. `real` (B, L) is False on padding."""
    tap = Tap()
    modules = [layer.self_attn for layer in decoder.layers]

    def computed(layer: int) -> None:
        if (attention := tap.attention(real)) is not None:
            see(layer, attention)

    hooks = [module.register_forward_hook(lambda *_, i=i: computed(i)) for i, module in enumerate(modules)]
    tap.open(modules)
    put_back = set_aside(decoder.layers)
    try:
        yield
    finally:
        put_back()
        tap.close()
        for hook in hooks:
            hook.remove()


def next_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's own logits (B, V) of the token that follows each prompt.

    Raises:
        ValueError: the model is in training mode, where dropout would change every number.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    call: Any = model
    only_last = {"logits_to_keep": 1} if call._supports_logits_to_keep() else {}
    return call(**batch.inputs, use_cache=False, **only_last).logits[:, -1]


@torch.no_grad()
def observe(model: PreTrainedModel, batch: Batch, look: Callable[[int, Attention], T]) -> tuple[Tensor, list[T]]:
    """One dense pass: the logits (B, V) after each prompt, and what `look` made of each layer's attention."""
    found: list[T] = []
    decoder, real = decoder_of(model), batch.layout(model).real
    with watch(decoder, real, lambda layer, attention: found.append(look(layer, attention))):
        return next_logits(model, batch), found


@torch.no_grad()
def record(model: PreTrainedModel, batch: Batch) -> Recording:
    """Run the prompts once and keep what every layer was given and what its keys and values were.

    Raises:
        NotImplementedError: the model's logits are not its head on the final norm of the last layer's output.
    """
    decoder, layout = decoder_of(model), batch.layout(model)
    families.check_prompt(decoder.config, layout.visual.shape[1])
    entering, given, left = [], [], []

    def enters(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        entering.append(args[0])
        given.append(kwargs)

    hooks = [layer.register_forward_pre_hook(enters, with_kwargs=True) for layer in decoder.layers]
    hooks += [layer.register_forward_hook(lambda module, args, output: left.append(output)) for layer in decoder.layers]
    try:
        logits, seen = observe(model, batch, lambda layer, attention: (attention.key, attention.value))
    finally:
        for hook in hooks:
            hook.remove()
    # what a decoder adds between its layers (Qwen3-VL: visual features): None where it adds nothing
    added = [None if after is out else after - out for out, after in zip(left[:-1], entering[1:], strict=True)]
    recording = Recording(model, decoder, layout, logits, entering, given, [*added, None], seen)
    if not torch.allclose(recording.logits_of(left[-1]), logits, rtol=1e-2, atol=1e-2):
        raise NotImplementedError(f"{type(model).__name__} does more than norm and head after its last layer")
    return recording


@dataclass(frozen=True, eq=False)
class Recording:
    """A dense pass over a batch of prompts of length L.

    Attributes:
        logits: (B, V), of the token after each prompt.
        entering: for each layer the hidden states (B, L, D) that entered it. given: its keyword arguments.
        added: for each layer what the decoder added to its output, (B, L, D) or None.
        seen: for each layer its keys and values, (B, H_kv, L, d) each.
    """

    model: PreTrainedModel
    decoder: Any
    layout: Layout
    logits: Tensor
    entering: list[Tensor]
    given: list[dict[str, Any]]
    added: list[Tensor | None]
    seen: list[tuple[Tensor, Tensor]]

    @property
    def layers(self) -> int:
        return len(self.entering)

    @property
    def columns(self) -> Tensor:
        """(B, L) long: every column of the prompt."""
        batch, length = self.layout.visual.shape
        return torch.arange(length, device=self.entering[0].device).expand(batch, length)

    def visible(self, layer: int) -> Tensor:
        """Which column each row may read in a layer of the dense pass, (B, 1, L, L) bool."""
        return self._visible[layer]

    @functools.cached_property
    def _visible(self) -> list[Tensor]:
        masks: list[Tensor] = []
        for layer, given in enumerate(self.given):
            shared = layer > 0 and given["attention_mask"] is self.given[layer - 1]["attention_mask"]
            masks.append(masks[-1] if shared else readable(given["attention_mask"], self.columns))
        return masks

    def run(
        self,
        layer: int,
        hidden: Tensor,
        columns: Tensor,
        visible: Tensor,
        before: int = 0,
        values: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """One layer again, on the rows `hidden` (B, M, D) that stand at `columns` (B, M) of the prompt.

        Args:
            visible: (B, 1, M, before + M) bool, what each row may read.
            before: how many columns at the prompt's start are read as the dense pass left them, not computed again.
            values: what to make of the value vectors (B, H_kv, before + M, d) before they are read.
        """
        module, given = self.decoder.layers[layer], self.given[layer]

        def there(x: Tensor, dim: int) -> Tensor:
            rows = 1 if x.shape[0] in (1, len(columns)) else len(columns) // x.shape[0]
            return take(x.repeat(rows, *[1] * (x.ndim - 1)), columns, dim)

        rope = tuple(there(x, -2) for x in given["position_embeddings"])
        scaled = families.scales_by_position(self.decoder.config)
        positions = there(given["position_ids"], -1) if scaled else None
        with obedient(self.model, module.self_attn):
            mask = visible
            if module.self_attn.config._attn_implementation == "eager":
                mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
            changed: dict[str, Any] = {"attention_mask": mask, "position_embeddings": rope, "position_ids": positions}
            if before or values:
                key, value = self.seen[layer]
                changed["past_key_values"] = Before(key[:, :, :before], value[:, :, :before], values)
            return module(hidden, **{**given, **changed})

    def onward(self, layer: int, hidden: Tensor, start: int, blocked: Tensor | None, where: Collection[int]) -> Tensor:
        """The logits (B, V) if `hidden` (B, L - start, D) entered `layer` in place of the last columns.

        Args:
            start: the first of those columns; the ones before it stay as they were.
            blocked: (B, L, L) bool, edges that are closed in the layers `where`.
        """
        columns = self.columns[:, start:]
        for i in range(layer, self.layers):
            visible = self.visible(i)[:, :, start:]
            if blocked is not None and i in where:
                visible = visible & ~blocked[:, None, start:]
            hidden = self.run(i, hidden, columns, visible, before=start)
            hidden = self.between(i, hidden, start)
        return self.logits_of(hidden)

    def between(self, layer: int, hidden: Tensor, start: int = 0) -> Tensor:
        """What enters the next layer in the columns from `start` on, where `hidden` left this one."""
        added = self.added[layer]
        return hidden if added is None else hidden + added[:, start:]

    def knocked(self, blocked: Tensor, where: Collection[int]) -> Tensor:
        """The logits (B, V) with the edges `blocked` (B, L, L) closed in the layers `where`."""
        touched = blocked.any(2).any(0)  # (L,): rows that lose an edge
        if not touched.any() or not where:
            return self.logits
        first, start = min(where), int(touched.int().argmax())
        if any(self.visible(i)[:, :, :start, start:].any() for i in range(first, self.layers)):
            start = 0  # not causal: earlier rows read later ones
        return self.onward(first, self.entering[first][:, start:], start, blocked, where)

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Next-token logits (B, V) of the last row of what the last layer put out."""
        head: Any = self.model.get_output_embeddings()
        return head(self.decoder.norm(hidden[:, -1]))


def readable(mask: Any, columns: Tensor) -> Tensor:
    """Which of the `columns` (B, L) each row may read under whatever mask a kernel was given: (B, 1, L, L) bool."""
    batch, length = columns.shape
    if mask is None or isinstance(mask, Tensor):
        return allowed(mask, columns, length).expand(batch, -1, -1, -1)
    rows, keys = torch.meshgrid(*[columns[0]] * 2, indexing="ij")  # flex attention's BlockMask is a function
    zero = torch.zeros_like(rows)
    return torch.stack([mask.mask_mod(zero + b, zero, rows, keys) for b in range(batch)])[:, None]


class Before:
    """Stands in for a layer's cache: shows it the first keys and values of the dense pass, and keeps nothing."""

    def __init__(self, key: Tensor, value: Tensor, values: Callable[[Tensor], Tensor] | None):
        self.key, self.value, self.values = key, value, values

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        value = torch.cat([self.value, value], dim=2)
        return torch.cat([self.key, key], dim=2), value if self.values is None else self.values(value)


@contextmanager
def obedient(model: PreTrainedModel, attention: Any) -> Iterator[None]:
    """Let one attention module run under a kernel that honours 4-D masks: its own, else sdpa, else eager."""
    config = attention.config
    if config._attn_implementation not in OBEY:
        attention.config = copy.copy(config)
        attention.config._attn_implementation_internal = "sdpa" if model._supports_sdpa else "eager"
    try:
        yield
    finally:
        attention.config = config


def compare(full: Tensor, other: Tensor, top: int = 5) -> dict[str, Tensor]:
    """How far a changed prediction is from the dense one; logits (B, V) in, (B,) float64 each out.

    "same": 1.0 where both would say the same token (label consistency); "jaccard": of the `top` likeliest tokens (score
    consistency); "kl": KL(other || full) in nats.
    """
    full, other = full.double(), other.double()
    p, q = full.log_softmax(-1), other.log_softmax(-1)
    shared = (full.topk(top).indices[:, :, None] == other.topk(top).indices[:, None]).sum((1, 2))
    return {
        "same": (full.argmax(-1) == other.argmax(-1)).double(),
        "jaccard": shared.double() / (2 * top - shared),
        "kl": (q.exp() * (q - p)).sum(-1),
    }
