"""Stages: what the curves say about a model, as four layers, each by a stated rule and with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foveate.flow.result import Means, Result
from foveate.flow.withdrawal import ETA

PART = 0.9  # of a whole, where a rule asks for most of it


@dataclass(frozen=True)
class Stage:
    """A layer at which something begins or ends, decided by a rule on means over samples.

    Attributes:
        layer: the layer, 0-based; the depth of the model if no layer fulfils the rule.
        low, high: its 95 % interval, by the bootstrap over samples.
        rule: in words. figure: the number that decided it, in words.
    """

    name: str
    layer: int
    low: int
    high: int
    rule: str
    figure: str


def stages(saliency: Result, windows: Result, withdrawal: Result, eta: float = ETA) -> list[Stage]:
    """Where injection ends, where fusion begins and ends, and from which layer vision can go.

    Args:
        saliency: with "S_vt". windows: with the sweep "first". withdrawal: the curve.
        eta: mean KL, in nats, up to which the prediction counts as unchanged.
    """
    depth = len(withdrawal.labels["layer"])

    def injected(mean: Means) -> np.ndarray:
        return first((np.cumsum(mean["S_vt"], -1) / mean["S_vt"].sum(-1, keepdims=True)) >= PART)

    def begins(mean: Means) -> np.ndarray:
        return first(mean["first_kl"] > (1 - PART) * mean["first_kl"][..., -1:])

    def ends(mean: Means) -> np.ndarray:
        return first(from_here_on(mean["kl"] < (1 - PART) * mean["kl"][..., :1]))

    def free(mean: Means) -> np.ndarray:
        return first(from_here_on(mean["kl"] <= eta))

    saliency_sum = saliency.mean(lambda mean: np.cumsum(mean["S_vt"], -1) / mean["S_vt"].sum(-1, keepdims=True))
    first_kl, kl, same = windows.mean("first_kl"), withdrawal.mean("kl"), withdrawal.mean("same")
    return [
        stage(
            "injection into the text ends",
            saliency,
            injected,
            f"first layer by which {PART:.0%} of all S_vt (what text reads from the picture) has been sent",
            lambda k: f"{value(saliency_sum, k, '.0%')} of S_vt up to here",
        ),
        stage(
            "fusion begins",
            windows,
            begins,
            "first layer k for which hiding the picture from the text in layers 0 to k has more than "
            f"{1 - PART:.0%} of the effect (KL) of hiding it everywhere",
            lambda k: f"KL {value(first_kl, k, '.3f')} of {first_kl[-1]:.3f} nats",
        ),
        stage(
            "fusion ends",
            withdrawal,
            ends,
            f"first layer from which on withdrawing the picture has less than {1 - PART:.0%} of the effect (KL) of "
            "never showing it",
            lambda k: f"KL {value(kl, k, '.3f')} of {kl[0]:.3f} nats",
        ),
        stage(
            "vision can go",
            withdrawal,
            free,
            f"first layer from which on withdrawing the picture changes the prediction by KL <= {eta:g} nats",
            lambda k: (
                f"KL {value(kl, k, '.4f')} nats, same answer token in {value(same, k, '.1%')}"
                if k < depth
                else f"in no layer; KL {kl[-1]:.4f} nats before the last"
            ),
        ),
    ]


def stage(
    name: str, result: Result, rule: Callable[[Means], np.ndarray], words: str, figure: Callable[[int], str]
) -> Stage:
    """A rule that finds a layer, applied to the means and to their bootstrap draws."""
    layer = int(result.mean(rule))
    low, high = (round(float(x)) for x in result.interval(rule))
    return Stage(name, layer, low, high, words, figure(layer))


def first(holds: np.ndarray) -> np.ndarray:
    """The first layer (last axis) where something holds; the number of layers if it never does."""
    return np.where(holds.any(-1), holds.argmax(-1), holds.shape[-1])


def from_here_on(holds: np.ndarray) -> np.ndarray:
    """Where something holds in this layer (last axis) and in all later ones."""
    return np.flip(np.logical_and.accumulate(np.flip(holds, -1), axis=-1), -1)


def value(curve: np.ndarray, layer: int, form: str) -> str:
    """A curve's value at a layer, formatted; a dash beyond its end."""
    return format(curve[layer], form) if layer < len(curve) else "-"
