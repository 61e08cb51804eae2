"""Prompts that are asked again and again, each time pruned in another way, to see what that changes.

The dense model answers once, and what its first layers put out is recorded. A trial begins at the layer whose attention
its method reads first: the layers before are not run, they hand on what was recorded. The dense answer is then read in
one piece after the pruned prompt: greedy decoding would have said the same if and only if every one of its tokens is
the likeliest after those before it. So a whole answer is compared at the price of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

import foveate
from foveate import cost
from foveate.measure import generate
from foveate.methods import Method
from foveate.pruning.families import decoder_of
from foveate.pruning.guard import shadow
from foveate.suite.runner import Item, collate, encoded_once, pad_id


@dataclass(frozen=True)
class Outcome:
    """What pruning did to one prompt and its answer.

    Attributes:
        same: the greedy answer is the dense one, token for token.
        kl: KL(dense || pruned), mean over the dense answer's tokens, in nats.
        flops: exact FLOPs of the prompt in decoder and LM head, scoring included; whole: with tower and projector.
        visual: layer-averaged share of the visual tokens.
        margin, entropy: of the pruned model's first token: log-probability of the likeliest over the next; in nats.
        again: FLOPs of the layers that would run once more without pruning.
    """

    same: bool
    kl: float
    flops: int
    whole: int
    visual: float
    margin: float
    entropy: float
    again: int


class Asked:
    """A batch of prompts with the dense model's answers.

    Attributes:
        items: the prompts.
        depth: up to which layer the dense pass was recorded; trials that begin later begin here.
        dense: what the dense model did, as if it had been a trial.
    """

    def __init__(self, model: Any, processor: Any, items: Sequence[Item], depth: int | None = None):
        """Answer the prompts without pruning.

        Raises:
            NotImplementedError: an architecture without a cost model.
        """
        self.model, self.items = model, list(items)
        self.decoder = decoder_of(model)
        self.layers = len(self.decoder.layers)
        self.depth = self.layers // 2 if depth is None else depth
        self.features: dict[tuple[str, ...], Any] = {}
        self.key = tuple(item.sample.name for item in items)
        inputs = collate([item.inputs for item in items], pad_id(model, processor))
        self.inputs = {
            k: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype) for k, x in inputs.items()
        }
        longest = max(item.sample.longest for item in items)
        self.left: list[Tensor] = []  # of each recorded layer, what it put out, (B, L, D)
        with torch.no_grad(), encoded_once(model, self.features, self.key), self.recorded():
            out = generate(model, self.inputs, longest, output_logits=True)
        length = self.inputs["input_ids"].shape[1]
        self.answers = out.sequences[:, length:]  # (B, T)
        self.said = until_end(self.answers, ends_of(model))  # (B, T) bool
        self.full = log_softmax(torch.stack(out.logits, 1).float(), -1)  # (B, T, V)
        cache = out.past_key_values.layers
        self.held = [(cache[i].keys[:, :, :length], cache[i].values[:, :, :length]) for i in range(self.depth)]
        self.dense = self.outcomes(self.full, [[item.length for item in items]] * self.layers, None)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it, the outputs of the first layers over the prompt go into `left`."""

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            if len(self.left) < self.depth:
                self.left.append(output)

        hooks = [layer.register_forward_hook(keep) for layer in self.decoder.layers[: self.depth]]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def trial(self, method: Method) -> list[Outcome]:
        """What pruning with this method does to each prompt and its answer.

        Raises:
            ValueError, NotImplementedError: the method does not fit the model.
        """
        touched = [layer - method.reads for layer in method.cuts(self.layers)] + list(method.edited(self.layers))
        mask = self.inputs.get("attention_mask", torch.ones_like(self.inputs["input_ids"]))
        with torch.no_grad(), foveate.prune(self.model, method) as pruned:
            with encoded_once(self.model, self.features, self.key), self.handing_on(min([self.depth, *touched])):
                prompt = self.model(**self.inputs, **self.places(mask, 0), **self.last_only, use_cache=True)
            first_logits = prompt.logits[:, -1:]  # (B, 1, V)
            trace = pruned.trace
            logits = [first_logits]
            if self.answers.shape[1] > 1:
                told = self.answers[:, :-1]
                mask = torch.cat([mask, torch.ones_like(told)], 1)
                after = {"input_ids": told, "attention_mask": mask, **self.places(mask, mask.shape[1] - told.shape[1])}
                logits.append(self.model(**after, past_key_values=prompt.past_key_values, use_cache=True).logits)
        assert trace is not None
        return self.outcomes(log_softmax(torch.cat(logits, 1).float(), -1), trace.tokens, method)

    def places(self, mask: Tensor, start: int) -> dict[str, Tensor]:
        """The positions of the columns from `start` on, as `generate` counts them, for models that do not do so."""
        if hasattr(self.model.base_model, "get_rope_index"):
            return {}
        return {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, start:]}

    @property
    def last_only(self) -> dict[str, int]:
        return {"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}

    @contextmanager
    def handing_on(self, first: int) -> Iterator[None]:
        """Within it, the layers before `first` are not run: they put out, and leave in the cache, what was recorded."""
        undo = []

        def recorded(layer: int) -> Any:
            def forward(hidden: Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Tensor:
                past_key_values.update(*self.held[layer], layer)
                return self.left[layer]

            return forward

        for layer in range(first):
            undo.append(shadow(self.decoder.layers[layer], "forward", recorded(layer)))
        try:
            yield
        finally:
            for restore in undo:
                restore()

    def outcomes(self, logp: Tensor, tokens: Sequence[Sequence[int]], method: Method | None) -> list[Outcome]:
        """From log-probabilities (B, T, V) of the answers' tokens, and each layer's number of tokens of each prompt."""
        said, count = self.said, self.said.sum(1)
        kl = ((self.full.exp() * (self.full - logp)).nan_to_num(0.0).sum(-1) * said).sum(1) / count  # (B,)
        same = ((logp.argmax(-1) == self.answers) | ~said).all(1)  # (B,)
        margin, entropy = signals(logp[:, 0])
        found = []
        for row, item in enumerate(self.items):
            counts = [layer[row] for layer in tokens]
            flops, tower = flops_of(self.model.config, item, method, counts)
            visual = [count - item.length + item.visual for count in counts]
            found.append(
                Outcome(
                    same=bool(same[row]),
                    kl=max(0.0, float(kl[row])),
                    flops=flops,
                    whole=flops + tower,
                    visual=cost.layer_average(visual) / item.visual,
                    margin=float(margin[row]),
                    entropy=float(entropy[row]),
                    again=again(self.model.config, item, counts, method),
                )
            )
        return found


def signals(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Margin and entropy, in nats and (B,) each, of next-token log-probabilities (B, V)."""
    best, second = logp.topk(2).values.unbind(-1)
    return best - second, -(logp.exp() * logp).nan_to_num(0.0).sum(-1)


def flops_of(config: Any, item: Item, method: Method | None, counts: Sequence[int]) -> tuple[int, int]:
    """Exact FLOPs of a prompt with `counts` tokens in each layer: decoder, LM head and scoring; tower and projector."""
    visual = [count - item.length + item.visual for count in counts]
    rows = method.scored(visual, item.length - item.visual - item.system, item.length) if method else {}
    rows = {layer: n for layer, n in rows.items() if visual[layer]}  # nothing is left to score
    flops = cost.prefill(config, list(counts), scored=rows, images=item.images)
    tower = flops.vision + flops.projector
    return flops.total - tower, tower


def again(config: Any, item: Item, counts: Sequence[int], method: Method | None) -> int:
    """FLOPs of running a pruned prompt once more, dense, from the first layer that pruning has touched."""
    touched = [layer for layer, count in enumerate(counts) if count < item.length]
    touched += list(method.edited(len(counts))) if method else []
    if not touched:
        return 0
    dense = cost.prefill(config, [item.length] * len(counts), images=0)
    return dense.decoder * (len(counts) - min(touched)) // len(counts) + dense.head


def until_end(answers: Tensor, ends: set[int]) -> Tensor:
    """Which tokens of each answer (B, T) are said: all up to and including the one that ends it, (B, T) bool."""
    is_end = torch.isin(answers, torch.tensor(sorted(ends), device=answers.device, dtype=answers.dtype))
    return is_end.cumsum(1) - is_end.long() == 0


def ends_of(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])
