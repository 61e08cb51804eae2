"""Windows: which stretch of layers needs the picture?

VisiPruner (EMNLP 2025), https://arxiv.org/abs/2510.17205, Fig. 3 and Table 8: text is kept from reading visual tokens
in the first layers, in the last layers, or in a window that moves over the depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from foveate.flow.knockout import VISUAL_TEXTUAL, Edges, knockout
from foveate.flow.replay import depth_of
from foveate.flow.result import Result, over
from foveate.flow.samples import Batch

SWEEPS = ("first", "last", "window")


def windows(
    model: PreTrainedModel,
    samples: Iterable[Batch],
    sweeps: Sequence[str] = SWEEPS,
    width: int | None = None,
    edges: Edges = VISUAL_TEXTUAL,
) -> Result:
    """How far the prediction moves when text cannot read the picture in a stretch of layers.

    Values "{sweep}_{measure}", each (samples, layer), the measures those of `knockout`. The layer k means: "first",
    closed in layers 0 to k; "last", closed from layer k on; "window", closed in `width` layers from k on.

    Args:
        width: of the window; by default a quarter of the depth.
        edges: what is closed.
    """
    depth = depth_of(model)
    width = max(1, depth // 4) if width is None else width
    ranges = {
        "first": [range(k + 1) for k in range(depth)],
        "last": [range(k, depth) for k in range(depth)],
        "window": [range(k, min(k + width, depth)) for k in range(depth)],
    }
    unknown = set(sweeps) - set(ranges)
    if unknown:
        raise ValueError(f"there is no sweep {', '.join(sorted(unknown))}: choose among {', '.join(SWEEPS)}")
    found = knockout(model, samples, {"edges": edges}, [layers for sweep in sweeps for layers in ranges[sweep]])
    values = {
        f"{sweep}_{measure}": value[:, 0, i * depth : (i + 1) * depth]
        for measure, value in found.values.items()
        for i, sweep in enumerate(sweeps)
    }
    axes = over(values, "layer")
    return Result("windows", values, axes, {"layer": list(range(depth))}, found.tasks, {"width": width})
