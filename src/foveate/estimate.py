"""What a method saves on a model, from the model's config alone: no weights are read and nothing is run."""

from collections.abc import Sequence
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


def formula_of(method: Method) -> str:
    """The published formula that a method is counted by."""
    return FORMULA.get(method.name, "himap")


def published(config: Any, method: Method, visual: int, text: int, schedule: Sequence[tuple[int, int]] = ()) -> int:
    """A prompt's cost by the formula of the method's paper; with no schedule that of the dense model."""
    formula = formula_of(method)
    return cost.published(config, visual, schedule, formula, text if formula == "vtw" else 0)


def estimate(
    config: Any,
    method: Method,
    *,
    visual: int,
    text: int,
    system: int = 0,
    images: Any = 1,
    new_tokens: int = 1,
    dtype: str = "bfloat16",
) -> cost.Comparison:
    """The cost of a prompt of `visual` and `text` tokens, `system` of them before the image, and of its answer.

    images: as `cost.prefill` takes them. new_tokens: of the answer. dtype: of the KV cache.
    Raises ValueError for a schedule outside the model's layers, NotImplementedError for an unknown architecture.
    """
    layers = cost.decoder_shape(config).layers
    schedule = method.schedule(layers, visual)
    counts = cost.visual_per_layer(layers, visual, schedule)
    return cost.compare(
        config,
        visual,
        schedule,
        text=text,
        scored=method.scored(counts, text - system, text + visual),
        images=images,
        new_tokens=new_tokens,
        dtype=dtype,
        formula=formula_of(method),
    )


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
