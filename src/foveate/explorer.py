"""One sample for the explorer of a profile's page: maps over the picture, and what each method keeps of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

import foveate
from foveate import ask, flow
from foveate.flow.lens import look, unembed
from foveate.flow.replay import observe
from foveate.flow.saliency import explain
from foveate.methods import Method
from foveate.pruning.families import grids
from foveate.suite.tasks import Sample

LONGEST = 8  # tokens of an answer


def prompt_size(model: Any, processor: Any, sample: Sample) -> tuple[int, int]:
    """Tokens and visual tokens of a prompt."""
    layout = alone(model, processor, sample).layout(model)
    return int(layout.real.sum()), int(layout.visual.sum())


def alone(model: Any, processor: Any, sample: Sample) -> flow.Batch:
    asked = (sample.picture(), sample.question, sample.answers[0], sample.task)
    return flow.prepare(processor, [asked]).to(model.device)


def explore(model: Any, processor: Any, sample: Sample) -> dict[str, Any]:
    """What the page's explorer shows of a sample: maps over the picture for each layer, and what each method keeps."""
    batch = alone(model, processor, sample)
    visual = batch.layout(model).visual[0]
    grid = grids(model, batch.inputs, int(visual.sum()))
    if len(grid) != 1:
        raise NotImplementedError(f"{sample.name}: the picture was cut into {len(grid)} tiles")
    _, seen = observe(model, batch, lambda layer, a: (a.last().mean(1)[0][visual], a.influence()[1][0][visual]))
    sent = [edges.sent[0][visual] for edges in explain(model, batch).layers]
    with torch.no_grad():
        _, states, _ = look(model, batch, ("image",))
        words = [processor.tokenizer.decode(unembed(model, state).argmax(-1)) for state in states]
    picture = ask.shown(processor, sample.picture())
    return {
        "task": sample.task,
        "question": sample.question,
        "answer": sample.answers[0],
        "said": said(model, processor, batch),
        "picture": data_url(picture),
        "grid": list(grid[0]),
        "layers": len(seen),
        "maps": {
            "attention": packed([attention for attention, _ in seen]),
            "saliency": packed(sent),
            "influence": packed([influence for _, influence in seen]),
        },
        "share": [float(attention.sum()) for attention, _ in seen],
        "words": words,
        "kept": {method.name: kept(model, processor, batch, visual, method) for method in fitting(len(seen))},
    }


def fitting(depth: int) -> list[Method]:
    """The methods with their published layers, in proportion to a model of this depth (32 layers are published)."""

    def layer(published: int, least: int = 1) -> int:
        return max(least, round(published * depth / 32))

    first = layer(2)
    return [
        foveate.FastV(layer=first),
        foveate.HiMAP(layer1=first, layer2=layer(8, first + 1)),
        foveate.VTW(layer=layer(16)),
        foveate.VisiPruner(shallow=layer(6)),
        foveate.Random(layer=first, keep=0.5),
        foveate.Uniform(layer=first, keep=0.5),
    ]


def kept(model: Any, processor: Any, batch: flow.Batch, visual: torch.Tensor, method: Method) -> dict[str, Any]:
    """What a method keeps at each of its cuts, and what the pruned model says."""
    with foveate.prune(model, method) as pruned:
        words = said(model, processor, batch)
        stages = pruned.trace.stages if pruned.trace is not None else []
    columns = visual.nonzero().flatten()
    alive = [(stage.layer, torch.isin(columns, stage.kept[0].to(columns.device))) for stage in stages]
    return {"said": words, "cuts": [{"layer": layer, "kept": encoded(mask.byte())} for layer, mask in alive]}


def said(model: Any, processor: Any, batch: flow.Batch) -> str:
    """The model's greedy answer."""
    return ask.answer(model, processor, batch.inputs, LONGEST) or "(nothing)"


def packed(maps: Sequence[torch.Tensor]) -> str:
    """Maps of the layers, each in bytes of its own maximum, as one base64 text."""
    stacked = torch.stack([m.float() for m in maps])
    return encoded((255 * stacked / stacked.amax(1, keepdim=True).clamp_min(1e-12)).round().byte())


def encoded(data: torch.Tensor) -> str:
    return base64.b64encode(data.cpu().numpy().tobytes()).decode()


def data_url(picture: Image.Image, most: int = 576) -> str:
    """The picture as a PNG in a data URL, at most `most` pixels wide and high."""
    small = picture.convert("RGB")
    small.thumbnail((most, most))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
