"""A Llama or Qwen2 decoder written out, in float64, for one unpadded row; every attention map can be read and edited.

Nothing is cached and nothing is dropped: every step of decoding runs the whole row again, and a dropped token is a
column of the attention that nobody may look at.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoder:
    """Weights of a decoder under their Hugging Face names (`layers.0.self_attn.q_proj.weight`, ...), in float64."""

    weights: dict[str, Tensor]
    lm_head: Tensor  # (vocabulary, width)
    layers: int
    heads: int
    rms_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...] | None = None  # how many frequencies turn with time, height, width

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Decoder":
        text = model.get_decoder()
        rope = text.config.rope_parameters
        return cls(
            weights={name: p.detach().double() for name, p in text.named_parameters()},
            lm_head=model.get_output_embeddings().weight.detach().double(),
            layers=text.config.num_hidden_layers,
            heads=text.config.num_attention_heads,
            rms_eps=text.config.rms_norm_eps,
            rope_theta=rope["rope_theta"],
            mrope_section=tuple(rope["mrope_section"]) if "mrope_section" in rope else None,
        )

    def embed(self, ids: list[int]) -> Tensor:
        return self.weights["embed_tokens.weight"][ids]

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.rms_eps).sqrt() * self.weights[f"{name}.weight"]

    def angles(self, positions: Tensor, head_size: int) -> Tensor:
        """(n, head_size / 2) rotation angles of positions (n,), or of (3, n): time, height, width."""
        half = head_size // 2
        angles = torch.empty(positions.shape[-1], half, dtype=torch.float64)
        for f in range(half):
            frequency = self.rope_theta ** (-2 * f / head_size)
            if positions.ndim == 1:
                axis = positions
            else:
                time, height, _ = self.mrope_section
                axis = positions[0 if f < time else 1 if f < time + height else 2]
            angles[:, f] = axis.double() * frequency
        return angles


@dataclass
class Layer:
    """What one layer did, for whoever decides before the next one. n tokens, H heads."""

    attention: Tensor  # (H, n, n) after softmax and after any edit; row i reads from column j
    values: Tensor  # (H, n, head size), repeated for grouped-query heads
    output: Tensor  # (n, H * head size), before o_proj


@dataclass
class Run:
    logits: Tensor  # (n, vocabulary)
    hidden: Tensor  # (n, width), after the final norm
    layers: list[Layer]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x_f, x_{f + half}) of (H, n, size) by `angles` (n, half)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def run(
    decoder: Decoder,
    embeds: Tensor,
    positions: Tensor,
    hidden_columns: Callable[[int, list[Layer]], set[int]] = lambda layer, before: set(),
    edit: Callable[[int, Tensor], Tensor] = lambda layer, attention: attention,
    edges: Callable[[int], Tensor | None] = lambda layer: None,
) -> Run:
    """One row through the decoder.

    Args:
        embeds: (n, width).
        positions: (n,) or (3, n) for mrope.
        hidden_columns: asked before each layer, with what the earlier layers did: columns nobody may look at in it.
        edit: post-softmax editing of a layer's (H, n, n) attention, nothing renormalised.
        edges: extra (n, n) bool of allowed edges in a layer, before the softmax.
    """
    d, n = decoder, len(embeds)
    head_size = d.weights["layers.0.self_attn.q_proj.weight"].shape[0] // d.heads
    angles = d.angles(positions, head_size)
    x, done = embeds.double(), []
    for i in range(d.layers):
        name = f"layers.{i}"
        allowed = torch.ones(n, n, dtype=torch.bool).tril()
        for column in hidden_columns(i, done):
            allowed[:, column] = False
            allowed[column, column] = True  # its own row is never read; this only keeps it from being empty
        if (more := edges(i)) is not None:
            allowed = allowed & more

        h = d.norm(x, f"{name}.input_layernorm")
        q, k, v = (  # each (heads, n, head size)
            d.linear(h, f"{name}.self_attn.{part}_proj").view(n, -1, head_size).transpose(0, 1) for part in "qkv"
        )
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = (t.repeat_interleave(d.heads // len(t), dim=0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / head_size**0.5  # (H, n, n)
        attention = edit(i, scores.masked_fill(~allowed, -torch.inf).softmax(-1))
        output = (attention @ v).transpose(0, 1).reshape(n, -1)
        done.append(Layer(attention, v, output))

        x = x + d.linear(output, f"{name}.self_attn.o_proj")
        h = d.norm(x, f"{name}.post_attention_layernorm")
        gate = torch.nn.functional.silu(d.linear(h, f"{name}.mlp.gate_proj"))
        x = x + d.linear(gate * d.linear(h, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")
    x = d.norm(x, "norm")
    return Run(x @ d.lm_head.T, x, done)
