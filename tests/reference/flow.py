"""Saliency and knockout from their formulas, by autograd on the written-out decoder."""

import torch
from torch import Tensor

from .decoder import run
from .rows import Input


def saliency(given: Input, target: int) -> tuple[float, list[Tensor]]:
    """Cross entropy of `target` at the last prompt position, and A * dL/dA of each layer, (H, n, n)."""
    maps: list[Tensor] = []

    def keep_gradient(layer: int, attention: Tensor) -> Tensor:
        attention.retain_grad()
        maps.append(attention)
        return attention

    out = run(given.decoder, given.embeds.clone().requires_grad_(), given.positions, edit=keep_gradient)
    loss = torch.nn.functional.cross_entropy(out.logits[-1:], torch.tensor([target]))
    loss.backward()
    return loss.item(), [(a * a.grad).detach() for a in maps]


def group_means(saliency_map: Tensor, given: Input) -> dict[str, float]:
    """What each group sends per token, from one layer's (n, n) map; row i reads from column j."""
    prompt = given.prompt
    everyone, system = list(range(prompt.length)), prompt.system
    visual, text = list(prompt.visual), prompt.instruction

    def sent(rows: list[int], columns: list[int]) -> float:
        return sum(float(saliency_map[i, columns].sum()) for i in rows) / len(columns)

    return {
        "S_sys": sent(everyone, system),
        "S_img": sent(everyone, visual),
        "S_ins": sent(everyone, text),
        "S_vv": sent(visual, visual),
        "S_vt": sent(text, visual),
    }


def knockout(given: Input, edge: str, first: int, last: int) -> Tensor:
    """(vocabulary,) last logits with text -> image or image -> image edges blocked in layers first..last."""
    prompt = given.prompt
    allowed = torch.ones(prompt.length, prompt.length, dtype=torch.bool)
    for i in {"text_to_image": prompt.instruction, "image_to_image": prompt.visual}[edge]:
        for j in prompt.visual:
            if i != j:
                allowed[i, j] = False
    edges = run(
        given.decoder, given.embeds, given.positions, edges=lambda layer: allowed if first <= layer <= last else None
    )
    return edges.logits[-1]
