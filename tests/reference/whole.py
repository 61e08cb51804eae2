"""A whole transformers model of any family under a rule: all tokens stay, and what a rule drops is looked at by nobody.

The model runs at full length with a plain attention function that writes every probability down, asks the rule before
each layer, and hides the columns it lets go. Positions, masks and what happens between the layers are the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .decoder import Layer
from .rules import Prompt, Rule

NAME = "written_out"


class Masked:
    """The attention function, and what it has seen of one prompt.

    The rows of a batch must be copies of one unpadded prompt, as beams are. The first pass over more than one token
    reads the prompt; whatever comes after it follows the prompt.

    Attributes:
        alive: of each layer, the visual positions that are still looked at.
        storage: a cache layer without content, if what is read of the past has been stored in one like it.
    """

    def __init__(self, rule: Rule, prompt: Prompt):
        self.rule, self.prompt = copy.deepcopy(rule), prompt
        self.alive: list[list[int]] = []
        self.before: list[Layer] = []
        self.storage: Any = None

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        layer, n, heads = module.layer_idx, self.prompt.length, query.shape[1]
        if self.storage is not None and len(self.alive) > layer:
            key, value = self.stored(self.alive[layer], key, value)
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
        reading = len(self.alive) == layer
        if reading:
            now = self.alive[-1] if self.alive else list(self.prompt.visual)
            if layer > 0 and self.prompt.visual:
                now = self.rule.keep(layer, self.before, self.prompt, now)
            self.alive.append(now)
        scores = query.double() @ key.double().mT * scaling + mask[..., : key.shape[2]]  # (B, H, q, kv)
        gone = sorted(set(self.prompt.visual) - set(self.alive[layer]))
        scores[..., gone] = torch.finfo(query.dtype).min
        weights = scores.softmax(-1)
        if reading:
            if self.prompt.visual:
                edited = self.rule.edit(layer, weights[0, :, :n, :n], self.prompt)
                weights = edited.expand_as(weights) if weights.shape[-1] == n else self.around(weights, edited)
            output = (weights[0] @ value[0].double()).transpose(0, 1).flatten(1)  # (q, H * d)
            self.before.append(Layer(weights[0].detach(), value[0].detach().double(), output.detach()))
        return (weights @ value.double()).transpose(1, 2).contiguous().to(query.dtype), weights.to(query.dtype)

    def stored(self, alive: list[int], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as they come back from a cache that was given the survivors, and then token by token."""
        layer, n = copy.deepcopy(self.storage), self.prompt.length
        held = sorted(set(range(n)) - set(self.prompt.visual) | set(alive))
        layer.update(key[:, :, held], value[:, :, held])
        for token in range(n, key.shape[2]):
            now = layer.update(key[:, :, token : token + 1], value[:, :, token : token + 1])
        key, value = key.clone(), value.clone()
        columns = [*held, *range(n, key.shape[2])]
        key[:, :, columns], value[:, :, columns] = now
        return key, value

    def around(self, weights: Tensor, edited: Tensor) -> Tensor:
        """The prompt's part of the weights replaced; other tokens follow it in this pass."""
        weights, n = weights.clone(), self.prompt.length
        weights[:, :, :n, :n] = edited
        return weights


@contextmanager
def masked(model: Any, rule: Rule, prompt: Prompt) -> Iterator[Masked]:
    """An eager model that keeps to the rule while it reads this prompt and goes on from it."""
    config, attention = model.get_decoder().config, Masked(rule, prompt)
    before = config._attn_implementation_internal
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping  # transformers looks for names of masks in here only
    ALL_ATTENTION_FUNCTIONS[NAME], masks[NAME] = attention.attend, eager_mask
    config._attn_implementation_internal = NAME
    try:
        yield attention
    finally:
        config._attn_implementation_internal = before
        del ALL_ATTENTION_FUNCTIONS[NAME], masks[NAME]
