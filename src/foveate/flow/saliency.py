"""Saliency: how much every attention edge matters for the answer, summed over groups of tokens.

Lifting the Veil on Visual Information Flow in MLLMs (HiMAP, CVPR 2025), https://arxiv.org/abs/2503.13108, Sec. 2

With L the cross entropy of the true next token, I_l(i, j) = |sum_h A_h dL/dA_h| says how much reading column j from row
i in layer l mattered. Since O = A V, dL/dA = dL/dO V^T: the gradient of the attention output is enough, A is computed
again in chunks of rows, and no attention map is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from foveate.flow.replay import decoder_of, depth_of, next_logits, watch
from foveate.flow.result import Result, collect, over
from foveate.flow.samples import Batch
from foveate.pruning.attention import PART_BYTES, Attention, allowed
from foveate.pruning.layout import GROUPS, Layout

Reduce = Literal["signed", "meanabs"]
Variant = Literal["exact", "released"]
CURVES = ("S_sys", "S_img", "S_ins", "S_vv", "S_vt")


def saliency(
    model: PreTrainedModel,
    samples: Iterable[Batch],
    reduce: Reduce = "signed",
    variant: Variant = "exact",
    target: int | None = None,
) -> Result:
    """How much each group of tokens sends to the others, by layer.

    Values, each (samples, layer): S_sys, S_img, S_ins: what a group sends to all rows, per token of the group; S_vv:
    what visual tokens send to visual tokens, S_vt: to the text after the image, per visual token. "flow" (samples,
    layer, reader, source) is the sum of I over the edges from a source group to a reader group, "edge" the mean over
    those edges (S_vv has far more edges than S_vt). "loss" (samples,) is the cross entropy.

    Args:
        reduce: "signed" is |sum over heads of A * dL/dA| per edge; "meanabs" the mean over heads of |A * dL/dA|.
        variant: "released" is what HiMAP's code computes, to reproduce its pictures: mean over heads of A^2 |dL/dA|,
            and for S_sys, S_img, S_ins what a group receives instead of what it sends.
        target: a token to explain in place of each sample's true one.
    """

    def of_batch(batch: Batch) -> dict[str, Any]:
        found = explain(model, batch, reduce, variant, target)
        layout = batch.layout(model)
        values = [group_sums(seen, layout, variant) for seen in found.layers]
        return {"loss": found.loss, **{key: [v[key] for v in values] for key in values[0]}}

    axes = {"loss": (), **over(CURVES, "layer")}
    axes |= over(("flow", "edge"), "layer", "reader", "source")
    layers = list(range(depth_of(model)))
    labels = {"layer": layers, "reader": GROUPS, "source": GROUPS}
    settings = {"reduce": reduce, "variant": variant, "target": target}
    return collect("saliency", samples, of_batch, axes, labels, settings)


def group_sums(seen: Edges, layout: Layout, variant: Variant) -> dict[str, Tensor]:
    """The curves of one layer, (B,) each, and its flow between groups, (B, reader, source)."""
    layout = layout.to(seen.flow.device)
    sizes = {name: layout.group(name).sum(1) for name in GROUPS}  # (B,) each
    system, image, instruction, answer = range(4)
    sent = seen.flow.sum(1 if variant == "exact" else 2)  # (B, group)
    return {
        "S_sys": sent[:, system] / sizes["system"],
        "S_img": sent[:, image] / sizes["image"],
        "S_ins": sent[:, instruction] / sizes["instruction"],
        "S_vv": seen.flow[:, image, image] / sizes["image"],
        "S_vt": seen.flow[:, [instruction, answer], image].sum(1) / sizes["image"],
        "flow": seen.flow,
        "edge": seen.flow / seen.edges,
    }


@dataclass(frozen=True, eq=False)
class Edges:
    """The saliency of one layer's edges, summed.

    Attributes:
        flow: (B, reader, source), the sum over the edges between two of `GROUPS`; edges: how many they are.
        sent: (B, L), what each token sends to all rows.
    """

    flow: Tensor
    edges: Tensor
    sent: Tensor


@dataclass(frozen=True, eq=False)
class Explained:
    """The saliency of a batch: `loss` (B,) and each layer's edges."""

    loss: Tensor
    layers: list[Edges]


def explain(
    model: PreTrainedModel,
    batch: Batch,
    reduce: Reduce = "signed",
    variant: Variant = "exact",
    target: int | None = None,
) -> Explained:
    """One forward and one backward pass, and the saliency of every layer's edges.

    Raises:
        ValueError: an unknown `reduce` or `variant`, an answer without tokens, a model in training mode.
    """
    if reduce not in ("signed", "meanabs") or variant not in ("exact", "released"):
        raise ValueError(f"reduce is signed or meanabs, variant exact or released, not {reduce!r} and {variant!r}")
    decoder, layout = decoder_of(model), batch.layout(model)
    targets = batch.targets if target is None else torch.full((len(batch),), target)
    found: dict[int, Edges] = {}

    def see(layer: int, attention: Attention) -> None:
        def back(gradient: Tensor) -> None:
            found[layer] = summed(attention, gradient, layout, reduce, variant)

        attention.output.register_hook(back)

    with torch.enable_grad(), gradients_of_inputs(model, decoder), watch(decoder, layout.real, see):
        logits = next_logits(model, batch)
        loss = cross_entropy(logits.float(), targets.to(logits.device), reduction="none")  # (B,)
        loss.sum().backward()
    return Explained(loss.detach(), [found[layer] for layer in sorted(found)])


@torch.no_grad()
def summed(attention: Attention, gradient: Tensor, layout: Layout, reduce: Reduce, variant: Variant) -> Edges:
    """A layer's saliency from the gradient (B, L, H, d) of its output, a chunk of rows at a time."""
    layout = layout.to(gradient.device)
    member = torch.stack([layout.group(name) for name in GROUPS], dim=-1).float()  # (B, L, group)
    batch, length, groups = member.shape
    flow, edges = member.new_zeros(batch, groups, groups), member.new_zeros(batch, groups, groups)
    sent = member.new_zeros(batch, length)
    step = max(1, PART_BYTES // (4 * batch * gradient.shape[2] * length))
    for start in range(0, length, step):
        rows = torch.arange(start, min(start + step, length), device=gradient.device).expand(batch, -1)
        weights = attention.rows(rows)  # (B, H, r, L)
        per_edge = reduced(weights, output_to_weights(gradient[:, rows[0]], attention.value), reduce, variant)
        readers = member[:, rows[0]].mT  # (B, group, r)
        per_edge = per_edge * readers.sum(1)[..., None]  # padding reads nothing
        flow += readers @ (per_edge @ member)
        edges += readers @ (allowed(attention.mask, rows, length)[:, 0].float() @ member)
        sent += per_edge.sum(1)
    return Edges(flow, edges, sent)


def output_to_weights(gradient: Tensor, value: Tensor) -> Tensor:
    """dL/dA (B, H, r, L) of rows whose outputs have the gradient (B, r, H, d); value (B, H_kv, L, d)."""
    batch, rows, heads, size = gradient.shape
    grouped = gradient.transpose(1, 2).reshape(batch, value.shape[1], -1, size)  # (B, H_kv, H / H_kv * r, d)
    return (grouped @ value.mT).view(batch, heads, rows, -1).float()


def reduced(weights: Tensor, gradient: Tensor, reduce: Reduce, variant: Variant) -> Tensor:
    """I (B, r, L) of the edges, from A and dL/dA (B, H, r, L)."""
    if variant == "released":
        return (weights.square() * gradient.abs()).mean(1)
    product = weights * gradient
    return product.sum(1).abs() if reduce == "signed" else product.abs().mean(1)


@contextmanager
def gradients_of_inputs(model: nn.Module, decoder: nn.Module) -> Iterator[None]:
    """Let gradients flow from the decoder's input embeddings on, and into no parameter."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"].detach().requires_grad_()}

    hook = decoder.register_forward_pre_hook(begin, with_kwargs=True)
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        hook.remove()
        for p in trained:
            p.requires_grad_(True)
