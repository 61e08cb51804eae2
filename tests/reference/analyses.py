"""The analyses of the papers for one unpadded row, in float64 and with explicit loops over tokens."""

import math

import torch
from torch import Tensor

from .decoder import Decoder, Layer, run
from .rows import Input

Groups = dict[str, list[int]]


def groups(given: Input) -> Groups:
    """Positions of each group; a row without an image is all system."""
    n, visual = given.prompt.length, list(given.prompt.visual)
    first = visual[0] if visual else n
    text = [i for i in range(first, n) if i not in visual]
    return {"system": list(range(first)), "image": visual, "instruction": text, "answer": []}


def logits_of(given: Input, state: Tensor) -> Tensor:
    """Final norm, once, and head."""
    return given.decoder.norm(state, "norm") @ given.decoder.lm_head.T


def kl(other: Tensor, full: Tensor) -> float:
    """KL(other || full) in nats, term by term."""
    q, p = torch.softmax(other, -1).tolist(), torch.softmax(full, -1).tolist()
    return sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True) if b > 0)


def top(logits: Tensor, k: int = 5) -> set[int]:
    return set(torch.argsort(-logits)[:k].tolist())


def compared(full: Tensor, other: Tensor) -> dict[str, float]:
    a, b = top(full), top(other)
    same = float(int(full.argmax()) == int(other.argmax()))
    return {"same": same, "jaccard": len(a & b) / len(a | b), "kl": kl(other, full)}


def edge_sums(saliency_map: Tensor, given: Input) -> tuple[dict, dict]:
    """Sum and number of edges between groups, {(reader, source): ...}; only edges to earlier tokens and to itself."""
    where = groups(given)
    total, count = {}, {}
    for reader, rows in where.items():
        for source, columns in where.items():
            pairs = [(i, j) for i in rows for j in columns if j <= i]
            total[reader, source] = sum(float(saliency_map[i, j]) for i, j in pairs)
            count[reader, source] = len(pairs)
    return total, count


def released_curves(products: Tensor, attention: Tensor, given: Input) -> dict[str, float]:
    """What HiMAP's code plots, from A dL/dA and A (H, n, n): A^2 |dL/dA|, head mean, and sums over a group's rows."""
    m = (attention * products.abs()).mean(0)
    where, out = groups(given), {}
    for name, group in (("S_sys", "system"), ("S_img", "image"), ("S_ins", "instruction")):
        rows = where[group]
        out[name] = sum(float(m[i].sum()) for i in rows) / len(rows) if rows else math.nan
    return out


def knocked(given: Input, edges: list[tuple[int, int]], layers: set[int]) -> Tensor:
    """Last logits with the edges (reader, source) closed before the softmax in some layers."""
    n = given.prompt.length
    allowed = torch.ones(n, n, dtype=torch.bool)
    for i, j in edges:
        allowed[i, j] = False
    return run(
        given.decoder, given.embeds, given.positions, edges=lambda layer: allowed if layer in layers else None
    ).logits[-1]


def edges_between(given: Input, readers: list[str], sources: list[str]) -> list[tuple[int, int]]:
    where = groups(given)
    return [(i, j) for r in readers for i in where[r] for s in sources for j in where[s] if j < i]


def withdrawn(given: Input, at: int) -> Tensor:
    """Last logits if nobody may look at a visual token from layer `at` on."""
    visual = set(given.prompt.visual)
    out = run(
        given.decoder, given.embeds, given.positions, hidden_columns=lambda layer, _: visual if layer >= at else set()
    )
    return out.logits[-1]


def skipped(given: Input, at: int) -> Tensor:
    """Last logits if visual tokens take no part in layer `at`: nobody reads them and they stay what they were."""
    d, visual = given.decoder, list(given.prompt.visual)
    states = layer_states(given)
    text_only = run_layer(given, at, states[at], closed=set(visual))
    entering = text_only.clone()
    entering[visual] = states[at][visual]
    for layer in range(at + 1, d.layers):
        entering = run_layer(given, layer, entering, closed=set())
    return logits_of(given, entering[-1])


class OneLayer(Decoder):
    """One layer of a decoder, whose output comes out as it is: without the final norm."""

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x if name == "norm" else super().norm(x, name)


def run_layer(given: Input, layer: int, x: Tensor, closed: set[int]) -> Tensor:
    """One layer on hidden states (n, width); no row but a closed one itself may read the columns `closed`."""
    d, prefix = given.decoder, f"layers.{layer}."
    weights = {k.replace(prefix, "layers.0."): v for k, v in d.weights.items() if k.startswith(prefix)}
    one = OneLayer(weights, d.lm_head, 1, d.heads, d.rms_eps, d.rope_theta, d.mrope_section)
    return run(one, x, given.positions, hidden_columns=lambda *_: closed).hidden


def layer_states(given: Input) -> list[Tensor]:
    """Hidden states that enter each layer, and those that leave the last."""
    states = [given.embeds.double()]
    for layer in range(given.decoder.layers):
        states.append(run_layer(given, layer, states[-1], closed=set()))
    return states


def merged(given: Input, layers: set[int]) -> Tensor:
    """Last logits with the text's attention on the image moved to the first visual token, not renormalised."""
    where = groups(given)

    def edit(layer: int, attention: Tensor) -> Tensor:
        if layer not in layers or not where["image"]:
            return attention
        out = attention.clone()
        for i in where["instruction"]:
            mass = attention[:, i, where["image"]].sum(-1)
            out[:, i, where["image"]] = 0
            out[:, i, where["image"][0]] = mass
        return out

    return run(given.decoder, given.embeds, given.positions, edit=edit).logits[-1]


def allocation(layer: Layer, given: Input, factor: float) -> dict[str, float]:
    """Shares of attention and sinks of one layer; keys such as ("last", "image")."""
    where, out = groups(given), {}
    a = layer.attention.mean(0)  # (n, n)
    text = where["instruction"]
    for group, columns in where.items():
        last = float(a[-1, columns].sum())
        paid = [float(a[i, columns].sum()) for i in text]
        out["last", group] = last
        out["text", group] = sum(paid) / len(paid) if paid else math.nan
        out["last_token", group] = last / len(columns) if columns else math.nan
        out["text_token", group] = out["text", group] / len(columns) if columns else math.nan
    visual = where["image"]
    if not visual:
        return out | {"sinks": math.nan, "sink_share": math.nan, "norm_ratio": math.nan}
    received = {j: sum(float(a[i, j]) for i in text) / len(text) for j in visual}
    repeated = layer.values.shape[0] // kv_heads(given, layer)
    length = {j: float(layer.values[::repeated, j].abs().sum()) for j in visual}
    middle = sorted(length.values())[(len(visual) - 1) // 2]
    mean = sum(received.values()) / len(visual)
    idle = [j for j in visual if received[j] >= factor * mean and length[j] < middle]
    whole = sum(received.values())
    weighted = sum(received[j] * length[j] for j in visual) / whole
    return out | {
        "sinks": float(len(idle)),
        "sink_share": sum(received[j] for j in idle) / whole,
        "norm_ratio": weighted / (sum(length.values()) / len(visual)),
    }


def kv_heads(given: Input, layer: Layer) -> int:
    size = layer.values.shape[-1]
    return given.decoder.weights["layers.0.self_attn.v_proj.weight"].shape[0] // size


def influence(layer: Layer, given: Input) -> dict[int, tuple[float, float]]:
    """cos(O - c_i, O) and ||c_i|| of each visual token, c_i the vector that it adds to the last row's output."""
    whole, found = layer.output[-1], {}
    for j in given.prompt.visual:
        part = (layer.attention[:, -1, j, None] * layer.values[:, j]).flatten()
        rest = whole - part
        found[j] = (float(rest @ whole / rest.norm() / whole.norm()), float(part.norm()))
    return found


def brought(layer: Layer, given: Input, number: int, columns: list[int]) -> Tensor:
    """What the last row's attention brings in from some columns, after the output projection: (width,)."""
    part = sum((layer.attention[:, -1, j, None] * layer.values[:, j]).flatten() for j in columns)
    return part @ given.decoder.weights[f"layers.{number}.self_attn.o_proj.weight"].T
