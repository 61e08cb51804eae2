"""One dial for all methods: keep or layer is solved until they use the same layer-averaged tokens, or the same FLOPs.

    fastv, random, uniform      keep
    himap                       keep1 = t and keep2 = t^2, which at t = 0.5 is the published pair
    vtw                         layer, in whole layers
    visipruner                  none: what it keeps depends on the prompt

Layers that the user did not choose are the published ones (of 32-layer models) in proportion to the model's depth.
"""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from foveate import cost
from foveate.methods import Method

PUBLISHED_LAYERS = 32  # of LLaVA-1.5-7B, whose layers the methods' defaults name
NO_COST_MODEL = "this architecture has no cost model, so FLOPs cannot be held equal: use --keep"


@dataclass(frozen=True)
class Prompt:
    """The prompt that dials are solved for."""

    config: Any
    layers: int
    visual: int
    text: int
    system: int  # of the text, before the image
    images: Any  # as `cost.prefill` takes them; None for an architecture without a cost model


def scale_layers(method: Method, chosen: Collection[str], layers: int) -> Method:
    """The method with its layers in proportion to a model of `layers` layers, but for the fields in `chosen`."""
    found: dict[str, int] = {}
    for field, value in vars(method).items():
        if (field.startswith("layer") or field == "shallow") and field not in chosen:
            least = max(found.values(), default=0) + 1  # a second cut comes after the first
            found[field] = max(least, round(value * layers / PUBLISHED_LAYERS))
    return dataclasses.replace(method, **found)


def dial_of(method: Method, chosen: Collection[str], layers: int) -> Callable[[float], Method] | None:
    """How a method is set to t between 0 (the least it can keep) and 1 (the most), the fields in `chosen` untouched.

    None for a method without a dial, or whose every dial the user has set.
    """
    powers = {"keep": 1, "keep1": 1, "keep2": 2}
    keeps = [field for field in vars(method) if field in powers and field not in chosen]
    if keeps:
        return lambda t: dataclasses.replace(method, **{field: t ** powers[field] for field in keeps})
    if method.name == "vtw" and "layer" not in chosen:
        return lambda t: dataclasses.replace(method, layer=min(max(round(t * layers), 1), layers - 1))
    return None


def solve(dial: Callable[[float], Method], kind: str, target: float, prompt: Prompt) -> Method:
    """The method whose cost is nearest to `target`, a share of the dense model's.

    kind: "keep" counts layer-averaged visual tokens, "flops" exact FLOPs of the whole prefill. Raises ValueError if
    the method cannot come within a twentieth of the dense cost, and names what it can reach.
    """
    low, high = 0.0, 1.0
    for _ in range(24):  # far finer than a token
        middle = (low + high) / 2
        low, high = (low, middle) if share(dial(middle), kind, prompt) > target else (middle, high)
    best = min((dial(low), dial(high)), key=lambda method: abs(share(method, kind, prompt) - target))
    reached = share(best, kind, prompt)
    if abs(reached - target) > 0.05:
        most, least = share(dial(1.0), kind, prompt), share(dial(0.0), kind, prompt)
        what = "of the layer-averaged visual tokens" if kind == "keep" else "of the exact prefill FLOPs"
        raise ValueError(
            f"{best.name} cannot be brought to {target:.0%} {what} of dense: on this model it reaches "
            f"{least:.1%} to {most:.1%}, and {reached:.1%} is the nearest"
        )
    return tidy(best, prompt.visual)


def share(method: Method, kind: str, prompt: Prompt) -> float:
    """What a method costs by its schedule, as a share of dense.

    Raises NotImplementedError for "flops" on an architecture without a cost model.
    """
    schedule = method.schedule(prompt.layers, prompt.visual)
    if kind == "keep":
        return cost.layer_average(cost.visual_per_layer(prompt.layers, prompt.visual, schedule)) / prompt.visual
    if prompt.images is None:
        raise NotImplementedError(NO_COST_MODEL)
    length = prompt.text + prompt.visual
    visual = cost.visual_per_layer(prompt.layers, prompt.visual, schedule)
    rows = method.scored(visual, prompt.text - prompt.system, length)
    tokens = [prompt.text + count for count in visual]
    pruned = cost.prefill(prompt.config, tokens, scored=rows, images=prompt.images).total
    return pruned / cost.prefill(prompt.config, [length] * prompt.layers, images=prompt.images).total


def tidy(method: Method, visual: int) -> Method:
    """Keeps with no more digits than it takes to mean the same number of `visual` tokens."""
    before = method.schedule(10**6, visual)
    for digits in range(4, 10):
        rounded = {field: round(value, digits) for field, value in vars(method).items() if isinstance(value, float)}
        shorter = dataclasses.replace(method, **rounded)
        if shorter.schedule(10**6, visual) == before:
            return shorter
    return method
