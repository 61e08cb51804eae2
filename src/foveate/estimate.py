"""What a method saves on a model, from the model's config alone: no weights are read and nothing is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate import cost
from foveate.methods import Method

# Whose formula a method's own paper prints; the baselines are counted by HiMAP's, which is FastV's too.
FORMULA = {"visipruner": "visipruner", "vtw": "vtw"}
COUNTS = {  # formula: its unit, and what it counts
    "himap": ("MACs", "multiply-adds of the visual tokens alone, two FFN matrices (HiMAP Eq. 10, FastV Eq. 5)"),
    "visipruner": ("MACs", "multiply-adds of the visual tokens alone (VisiPruner)"),
    "vtw": ("FLOPs", "FLOPs of the whole prompt (VTW)"),
}


@dataclass(frozen=True)
class Estimate:
    """One prompt, dense or pruned."""

    tokens: list[int]  # in each layer
    prefill: cost.Flops
    decode: int  # FLOPs of all decode steps together
    cache_bytes: int  # keys and values of the prompt
    published: int  # by the paper's formula


def formula_of(method: Method) -> str:
    """The published formula that a method is counted by."""
    return FORMULA.get(method.name, "himap")


def published(config: Any, method: Method, visual: int, text: int, schedule: Sequence[tuple[int, int]] = ()) -> int:
    """A prompt's cost by the formula of the method's paper; with no schedule that of the dense model."""
    formula = formula_of(method)
    return cost.published(config, visual, schedule, formula, text if formula == "vtw" else 0)


def estimate(
    config: Any, method: Method, *, visual: int, text: int, images: Any = 1, decode: int = 0, dtype: str = "bfloat16"
) -> tuple[Estimate, Estimate]:
    """The cost of one prompt of `visual` and `text` tokens and of `decode` tokens after it, dense and pruned.

    The text counts as standing behind the image where a method's scoring depends on that. images: as `cost.prefill`.
    Raises ValueError for a schedule outside the model's layers, NotImplementedError for an unknown architecture.
    """
    layers = cost.decoder_shape(config).layers

    def one(schedule: Sequence[tuple[int, int]], scored: dict[int, int]) -> Estimate:
        tokens = cost.tokens_per_layer(layers, visual + text, visual, schedule)
        return Estimate(
            tokens=tokens,
            prefill=cost.prefill(config, tokens, scored=scored, images=images),
            decode=cost.decode(config, [count + 1 for count in tokens], decode).total,
            cache_bytes=cost.kv_bytes(config, tokens, dtype),
            published=published(config, method, visual, text, schedule),
        )

    return one([], {}), one(method.schedule(layers, visual), method.scored(layers, visual, text))


def count_visual(config: Any, visual: int | None, size: tuple[int, int] | None) -> tuple[int, Any]:
    """(visual tokens, images as `cost.prefill` takes them) from a number of tokens or an image's (height, width).

    With neither, one image of the model's own fixed size. The images are 0, and the vision tower is left out, where the
    number of tokens does not tell what the tower saw. Raises ValueError where the config alone does not tell.
    """
    if visual is None:
        return cost.visual_tokens(config, size), 1 if size is None else [size]
    try:
        one = cost.visual_tokens(config)
    except (ValueError, NotImplementedError):
        return visual, 0
    return visual, visual // one if visual % one == 0 else 0
