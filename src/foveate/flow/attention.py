"""Attention allocation: what the answer position and the text attend to, and which visual tokens are idle sinks.

VTW (AAAI 2025), https://arxiv.org/abs/2405.05803, Sec. 3: attention migrates from the image to the text with depth.
VisiPruner (EMNLP 2025), https://arxiv.org/abs/2510.17205, Sec. 3: in shallow layers visual tokens with much attention
have small value vectors, so that the attention goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foveate.flow.replay import depth_of, observe
from foveate.flow.result import Result, collect, over
from foveate.flow.samples import Batch
from foveate.pruning.attention import Attention
from foveate.pruning.layout import GROUPS, Layout


def allocation(
    model: PreTrainedModel, samples: Iterable[Batch], groups: Sequence[str] = GROUPS, factor: float = 5.0
) -> Result:
    """How attention (mean over heads) is shared among groups of tokens, and where it sinks, by layer.

    Values (samples, layer, group): "last", the share of the last row's attention that goes to each group; "text", the
    same averaged over all text rows after the image; "last_token" and "text_token", per token of the group.
    Values (samples, layer), about visual tokens and what the text rows pay to them: "sinks", how many receive at least
    `factor` times the average visual token's attention while their value vector is shorter than the median;
    "sink_share", their part of the attention on the image; "norm_ratio", the attention-weighted mean length of value
    vectors over the plain mean (below 1: attention goes where little can be read). The length of a value vector is the
    sum of |v|.

    Args:
        groups: also single images, such as "image 0".
    """

    def of_batch(batch: Batch) -> dict[str, Any]:
        layout = batch.layout(model)
        _, found = observe(model, batch, lambda layer, attention: of_layer(attention, layout, groups, factor))
        return {key: [layer[key] for layer in found] for key in found[0]}

    axes = over(("last", "text", "last_token", "text_token"), "layer", "group")
    axes |= over(("sinks", "sink_share", "norm_ratio"), "layer")
    labels = {"layer": list(range(depth_of(model))), "group": list(groups)}
    return collect("allocation", samples, of_batch, axes, labels, {"factor": factor})


def of_layer(attention: Attention, layout: Layout, groups: Sequence[str], factor: float) -> dict[str, Tensor]:
    """One layer's shares (B, group), and the figures about its sinks, (B,) each."""
    layout = layout.to(attention.query.device)
    member = torch.stack([layout.group(name) for name in groups], dim=-1).float()  # (B, L, group)
    readers = layout.instruction | layout.answer
    received = attention.received(readers) / readers.sum(1, keepdim=True)  # (B, L)
    last = attention.last().mean(1)  # (B, L)
    size = member.sum(1)
    shares = {"last": (last[:, None] @ member)[:, 0], "text": (received[:, None] @ member)[:, 0]}
    return (
        shares
        | {f"{key}_token": share / size for key, share in shares.items()}
        | sinks(received, attention.value.float().abs().sum((1, 3)), layout.visual, factor)
    )


def sinks(received: Tensor, length: Tensor, visual: Tensor, factor: float) -> dict[str, Tensor]:
    """Figures (B,) about visual tokens that receive attention and give little; all arguments (B, L)."""
    received, count = received * visual, visual.sum(1)
    whole, mean_length = received.sum(1), (length * visual).sum(1) / count
    median = torch.where(visual, length, torch.nan).nanmedian(1, keepdim=True).values
    idle = visual & (received >= factor * (whole / count)[:, None]) & (length < median)
    none = torch.where(count > 0, 0.0, torch.nan)
    return {
        "sinks": idle.sum(1) + none,
        "sink_share": (received * idle).sum(1) / whole,
        "norm_ratio": (received * length).sum(1) / whole / mean_length,
    }
