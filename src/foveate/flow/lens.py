"""Lenses: what the model would say if it had to answer from an inner state.

Logit lens: softmax(W_u norm(h)) of the last row's hidden state h after each layer, with the final norm applied once.
Value-output lens (VisiPruner, https://arxiv.org/abs/2510.17205): the same of W_o sum_i A[last, i] v_i, what the last
row's attention brings in from one group of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from foveate.flow.replay import decoder_of, depth_of, observe
from foveate.flow.result import Result, collect, over
from foveate.flow.samples import Batch
from foveate.pruning.attention import Attention
from foveate.pruning.layout import GROUPS


def lenses(model: PreTrainedModel, samples: Iterable[Batch], groups: Sequence[str] = GROUPS) -> Result:
    """How far the true answer, and the model's own, have come after each layer.

    Values, each (samples, layer): "answer", the probability of the true next token; "rank", its place, 0 is first;
    "same", 1 if the likeliest token is the one that the model will say; "entropy" in nats. Values (samples, layer,
    group) of the value-output lens: "value_answer", "value_rank" and "value_size", the length of what the group brings
    in (nan for a group without tokens).
    """

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Any]:
        final, states, brought = look(model, batch, groups)
        said, true = final.argmax(-1), batch.targets.to(final.device)
        hidden = [read(unembed(model, state), true) for state in states]
        value = [read(unembed(model, state), true[:, None].expand(state.shape[:2])) for state in brought]
        size = [state.float().norm(dim=-1) for state in brought]  # (B, G) each
        absent = [torch.where(length > 0, 0.0, torch.nan) for length in size]
        return {
            **{key: [h[key] for h in hidden] for key in ("answer", "rank", "entropy")},
            "same": [h["top"] == said for h in hidden],
            "value_answer": [v["answer"] + none for v, none in zip(value, absent, strict=True)],
            "value_rank": [v["rank"] + none for v, none in zip(value, absent, strict=True)],
            "value_size": [length + none for length, none in zip(size, absent, strict=True)],
        }

    axes = over(("answer", "rank", "same", "entropy"), "layer")
    axes |= over(("value_answer", "value_rank", "value_size"), "layer", "group")
    labels = {"layer": list(range(depth_of(model))), "group": list(groups)}
    return collect("lenses", samples, of_batch, axes, labels)


def look(model: PreTrainedModel, batch: Batch, groups: Sequence[str]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The model's logits (B, V); for each layer its last row's state (B, D) and what the groups brought, (B, G, D)."""
    decoder, layout, states = decoder_of(model), batch.layout(model), []
    member = torch.stack([layout.group(name) for name in groups], dim=1)  # (B, G, L)

    def bring(layer: int, attention: Attention) -> Tensor:
        value = attention.value.repeat_interleave(attention.query.shape[1] // attention.value.shape[1], dim=1)
        weight = attention.last().to(value.dtype)[:, :, None] * member[:, None].to(value.device)  # (B, H, G, L)
        parts = (weight @ value).transpose(1, 2).flatten(2)  # (B, G, H d)
        return linear(parts, decoder.layers[layer].self_attn.o_proj.weight)  # without a bias: it comes from no token

    hooks = [layer.register_forward_hook(lambda m, a, output: states.append(output[:, -1])) for layer in decoder.layers]
    try:
        logits, brought = observe(model, batch, bring)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, states, brought


def unembed(model: PreTrainedModel, state: Tensor) -> Tensor:
    """Log probabilities (..., V) that the model's final norm and head give a state (..., D)."""
    head: Any = model.get_output_embeddings()
    return head(decoder_of(model).norm(state)).double().log_softmax(-1)


def read(log_p: Tensor, true: Tensor) -> dict[str, Tensor]:
    """What stands in log probabilities (..., V) about the true tokens (...)."""
    mine = log_p.gather(-1, true[..., None])
    return {
        "answer": mine[..., 0].exp(),
        "rank": (log_p > mine).sum(-1).double(),
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "top": log_p.argmax(-1),
    }
