"""The methods' rules, spelled out for one row with explicit loops over tokens.

A rule is told, before each layer, what the earlier layers did, and answers with the visual tokens that are still
there. `edit` may change a layer's attention after the softmax; it is shown the prompt's rows only. A rule remembers
what it has seen: one rule, one run.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .decoder import Layer


@dataclass(frozen=True)
class Prompt:
    """A prompt of `length` tokens; `visual` are the positions of its visual tokens, in order."""

    length: int
    visual: tuple[int, ...]

    @property
    def system(self) -> list[int]:
        return list(range(self.visual[0]))

    @property
    def instruction(self) -> list[int]:
        """Every text token after the first visual one."""
        return [i for i in range(self.visual[0], self.length) if i not in self.visual]


class Rule:
    """No pruning. `margin` is the smallest relative distance from a decision's border that a run has met."""

    margin = float("inf")

    def keep(self, layer: int, before: list[Layer], prompt: Prompt, alive: list[int]) -> list[int]:
        return alive

    def edit(self, layer: int, attention: Tensor, prompt: Prompt) -> Tensor:
        return attention

    def top(self, scores: dict[int, float], keep: Any) -> list[int]:
        """The positions with the highest scores, in order. A float `keep` is a fraction of them, an int a count, and
        what has a `share` the smallest number that together have this share of all scores."""
        ranked = sorted(scores, key=lambda position: -scores[position])
        if hasattr(keep, "share"):
            return self.with_share(scores, ranked, keep.share)
        count = keep if isinstance(keep, int) else round(keep * len(scores))
        if 0 < count < len(ranked):
            last, first = scores[ranked[count - 1]], scores[ranked[count]]
            self.margin = min(self.margin, (last - first) / abs(last))
        return sorted(ranked[:count])

    def with_share(self, scores: dict[int, float], ranked: list[int], share: float) -> list[int]:
        total, held, kept = sum(scores.values()), 0.0, []
        for position in ranked:
            if held >= share * total and share < 1:
                break
            kept.append(position)
            held += scores[position]
            self.margin = min(self.margin, abs(held - share * total) / total)
        return sorted(kept)


@dataclass
class Given(Rule):
    """Cuts that somebody else has decided: {layer: positions kept from it on}."""

    cuts: dict[int, list[int]]

    def keep(self, layer, before, prompt, alive):
        return self.cuts.get(layer, alive)


@dataclass
class FastV(Rule):
    layer: int
    amount: float | int
    rows: str = "last"

    def scores(self, before: list[Layer], prompt: Prompt, alive: list[int]) -> dict[int, float]:
        mean = before[-1].attention.mean(0)  # (n, n)
        if self.rows == "last":
            return {v: float(mean[prompt.length - 1, v]) for v in alive}
        return {v: sum(float(mean[i, v]) for i in range(prompt.length) if i != v) for v in alive}

    def keep(self, layer, before, prompt, alive):
        if layer != self.layer:
            return alive
        return self.top(self.scores(before, prompt, alive), self.amount)


@dataclass
class HiMAP(Rule):
    layer1: int
    amount1: float | int
    layer2: int
    amount2: float | int
    deep: str = "receives"
    causal_normalised: bool = False

    def scores1(self, before: list[Layer], prompt: Prompt, alive: list[int]) -> dict[int, float]:
        mean = before[-1].attention.mean(0)
        return {v: sum(float(mean[i, v]) for i in prompt.instruction) for v in alive}

    def scores2(self, before: list[Layer], prompt: Prompt, alive: list[int]) -> dict[int, float]:
        mean = before[-1].attention.mean(0)
        scores = {}
        for v in alive:
            if self.deep == "sends":
                scores[v] = sum(float(mean[v, i]) for i in alive)
            else:
                scores[v] = sum(float(mean[i, v]) for i in alive)
            if self.causal_normalised:
                scores[v] /= sum(1 for i in alive if i >= v)
        return scores

    def keep(self, layer, before, prompt, alive):
        if layer == self.layer1:
            return self.top(self.scores1(before, prompt, alive), self.amount1)
        if layer == self.layer2:
            return self.top(self.scores2(before, prompt, alive), self.amount2)
        return alive


@dataclass
class VTW(Rule):
    layer: int

    def keep(self, layer, before, prompt, alive):
        return [] if layer == self.layer else alive


@dataclass
class Uniform(Rule):
    layer: int
    amount: float | int

    def keep(self, layer, before, prompt, alive):
        if layer != self.layer:
            return alive
        n = len(alive)
        k = min(self.amount, n) if isinstance(self.amount, int) else round(self.amount * n)
        return [alive[int((i + 0.5) * n / k)] for i in range(k)]


@dataclass
class VisiPruner(Rule):
    stages: tuple[str, ...] = ("shallow", "middle", "deep")
    shallow: int = 6
    fire: float = 0.995
    influence: float = 0.2
    exit: float = 0.999
    exit_count: int = 2
    consecutive: bool = False
    first_layer: str = "merge"
    self_attention: bool = True
    # what a run has seen, for tests that look at the numbers: layer -> {position: value}
    cosines: dict[int, dict[int, float]] = field(default_factory=dict)
    norms: dict[int, dict[int, float]] = field(default_factory=dict)
    filter_layer: int | None = None
    counted: list[int] = field(default_factory=list)
    exited: bool = False

    def edit(self, layer, attention, prompt):
        if "shallow" not in self.stages or layer >= self.shallow:
            return attention
        edited = attention.clone()
        visual, text = list(prompt.visual), prompt.instruction
        if layer > 0:
            for i in text if self.self_attention else text + visual:
                edited[:, i, visual] = 0
            return edited
        for i in visual:
            edited[:, i, visual] = 0
        for i in text:
            if self.first_layer == "halve":
                edited[:, i, visual[: len(visual) // 2]] = 0
            else:
                edited[:, i, visual] = 0
                edited[:, i, visual[0]] = attention[:, i, visual].sum(-1)
        return edited

    def contributions(self, before: Layer, prompt: Prompt, alive: list[int]) -> tuple[dict[int, float], ...]:
        """cos(O - c_i, O) and ||c_i|| of each surviving token i, for the last prompt row."""
        last = prompt.length - 1
        output = before.output[last]  # (H * head size,)
        cosines, norms = {}, {}
        for i in alive:
            c = torch.cat([a * v for a, v in zip(before.attention[:, last, i], before.values[:, i], strict=True)])
            cosines[i] = float(torch.nn.functional.cosine_similarity(output - c, output, dim=0))
            norms[i] = float(c.norm())
        return cosines, norms

    def near(self, values: list[float], border: float, scale: float) -> None:
        """Cosines are measured on the scale of 1 - border, norms on that of the border itself; neither is nothing."""
        for value in values:
            self.margin = min(self.margin, abs(value - border) / max(scale, 0.01))

    def keep(self, layer, before, prompt, alive):
        looked = layer - 1  # the layer whose attention decides
        if not alive or looked <= self.shallow:
            return alive
        if self.filter_layer is None and "middle" in self.stages:
            self.cosines[looked], self.norms[looked] = self.contributions(before[-1], prompt, alive)
            self.near([min(self.cosines[looked].values())], self.fire, 1 - self.fire)
            if all(cos >= self.fire for cos in self.cosines[looked].values()):
                return alive
            self.filter_layer = looked
            self.near(list(self.norms[looked].values()), self.influence, self.influence)
            return [i for i in alive if self.norms[looked][i] > self.influence]
        if "deep" not in self.stages:
            return alive
        self.cosines[looked], self.norms[looked] = self.contributions(before[-1], prompt, alive)
        self.near([min(self.cosines[looked].values())], self.exit, 1 - self.exit)
        if all(cos >= self.exit for cos in self.cosines[looked].values()):
            self.counted.append(looked)
        elif self.consecutive:
            self.counted.clear()
        return [] if len(self.counted) >= self.exit_count else alive
