"""A row of a real model through the reference: its embeddings, its positions, its cuts, and greedy decoding."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decoder import Decoder, Layer, Run, run
from .rules import Prompt, Rule


@dataclass
class Input:
    """One unpadded prompt, ready for the decoder."""

    decoder: Decoder
    prompt: Prompt
    embeds: Tensor  # (n, width)
    positions: Tensor  # (n,) or (3, n)

    def extended(self, tokens: list[int]) -> tuple[Tensor, Tensor]:
        """Embeddings and positions with text tokens after the prompt."""
        embeds = torch.cat([self.embeds, self.decoder.embed(tokens)]) if tokens else self.embeds
        after = int(self.positions.max()) + 1 + torch.arange(len(tokens))
        return embeds, torch.cat([self.positions, after.expand(*self.positions.shape[:-1], -1)], dim=-1)


@dataclass
class Result:
    logits: Tensor  # (tokens + 1, vocabulary): after the prompt, then after each token
    tokens: list[int]
    cuts: dict[int, list[int]]  # layer: visual positions that survive from it on, where that changes
    alive: list[list[int]]  # per layer
    hidden: Tensor  # (width,) after the final norm, at the last prompt position
    rule: Rule  # as the run left it


@dataclass
class Pruned:
    """The decisions of one run over a prompt, made once and held for whatever follows the prompt."""

    run: Run
    rule: Rule
    alive: list[list[int]]


def pruned_run(given: Input, rule: Rule, tokens: list[int]) -> Pruned:
    """The prompt and `tokens` after it, at full length. The rule sees the prompt only; dropped columns stay hidden."""
    rule, prompt, alive = copy.deepcopy(rule), given.prompt, []

    def hidden_columns(layer: int, before: list[Layer]) -> set[int]:
        now = alive[-1] if alive else list(prompt.visual)
        if layer > 0 and prompt.visual:
            now = rule.keep(layer, before, prompt, now)
        alive.append(now)
        return set(prompt.visual) - set(now)

    def edit(layer: int, attention: Tensor) -> Tensor:
        if not prompt.visual:
            return attention
        n = prompt.length
        edited = attention.clone()
        edited[:, :n, :n] = rule.edit(layer, attention[:, :n, :n], prompt)
        return edited

    embeds, positions = given.extended(tokens)
    return Pruned(run(given.decoder, embeds, positions, hidden_columns, edit), rule, alive)


def greedy(given: Input, rule: Rule, steps: int) -> Result:
    """Greedy decoding of `steps` tokens."""
    tokens: list[int] = []
    while True:
        out = pruned_run(given, rule, tokens)
        if len(tokens) == steps:
            break
        tokens.append(int(out.run.logits[-1].argmax()))
    return result(given, out, tokens)


def forced(given: Input, rule: Rule, tokens: list[int]) -> Result:
    """The same with tokens that somebody else has chosen."""
    return result(given, pruned_run(given, rule, tokens), list(tokens))


def result(given: Input, out: Pruned, tokens: list[int]) -> Result:
    last = given.prompt.length - 1
    before = [list(given.prompt.visual), *out.alive]
    cuts = {layer: kept for layer, kept in enumerate(out.alive) if kept != before[layer]}
    return Result(out.run.logits[last:], tokens, cuts, out.alive, out.run.hidden[last], out.rule)


@torch.no_grad()
def of_row(model: Any, row: Any, inputs: dict[str, Tensor], placeholder: int) -> Input:
    """A row of tiny.py: `inputs` is the row alone, as model inputs. Only the vision tower of the model is asked."""
    decoder = Decoder.of(model)
    ids = list(row.ids)
    embeds = decoder.embed(ids).clone()
    visual = [i for i, token in enumerate(ids) if token == placeholder]
    if visual:
        pictures = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
        embeds[visual] = torch.cat(list(model.get_image_features(**pictures).pooler_output)).double()
    positions = mrope_positions(row, placeholder) if decoder.mrope_section else torch.arange(len(ids))
    return Input(decoder, Prompt(len(ids), tuple(visual)), embeds, positions)


def mrope_positions(row: Any, placeholder: int) -> Tensor:
    """(3, n): text advances all three axes together; an image stands at one time and spans height and width."""
    positions, images, now, i = [], list(row.images), 0, 0
    while i < len(row.ids):
        if row.ids[i] != placeholder:
            positions.append((now, now, now))
            now, i = now + 1, i + 1
            continue
        _, height, width = images.pop(0)
        positions += [(now, now + y, now + x) for y in range(height) for x in range(width)]
        now, i = now + max(height, width), i + height * width
    return torch.tensor(positions).T


def beam_search(given: Input, rule: Rule, beams: int, steps: int) -> tuple[list[int], float]:
    """The best of `beams` beams without an end token, and its mean log probability per token."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(steps):
        grown = []
        for score, tokens in running:
            log_p = pruned_run(given, rule, tokens).run.logits[-1].log_softmax(-1)
            grown += [(score + float(log_p[t]), [*tokens, int(t)]) for t in log_p.topk(beams).indices]
        running = sorted(grown, key=lambda candidate: -candidate[0])[:beams]
    score, tokens = running[0]
    return tokens, score / steps
