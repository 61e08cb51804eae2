"""The job behind `foveate profile`: every analysis on a data set, in steps that survive a stop, then the report.

Loads, runs and writes; the curves are `foveate.flow`'s, the page is `foveate.report`'s.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import foveate
from foveate import ask, flow
from foveate.flow.claims import claims
from foveate.flow.lens import look, unembed
from foveate.flow.replay import depth_of, observe
from foveate.flow.result import Result
from foveate.flow.saliency import explain
from foveate.flow.stages import stages
from foveate.flow.withdrawal import ETA
from foveate.methods import Method
from foveate.pruning.families import grids
from foveate.report.page import page
from foveate.report.progress import progress
from foveate.suite import folder as own
from foveate.suite.tasks import METRICS_OF, Sample, draw

Analysis = Callable[[Any, Sequence[flow.Batch]], Result]
CHEAP: dict[str, Analysis] = {
    "saliency": flow.saliency,
    "withdrawal": flow.withdrawal,
    "windows": lambda model, samples: flow.windows(model, samples, sweeps=("first", "window")),  # "last" is withdrawal
    "allocation": flow.allocation,
    "critical": flow.critical,
    "lenses": flow.lenses,
}
COSTLY: dict[str, Analysis] = {
    "knockout": flow.knockout,
    "merging": flow.merging,
    "skips": lambda model, samples: flow.withdrawal(model, samples, skips=True),
}
SHOWN = 2  # samples of each task in the explorer
LONGEST = 8  # tokens of an answer in the explorer
DRAWS = 1000


def samples_of(data: str, tasks: Sequence[str], limit: int, seed: int) -> list[Sample]:
    """`limit` questions of each task: of the embedded suite, each task on scenes of its own, or of a user's folder."""
    if data != "suite":
        place = Path(data).expanduser()
        if not place.is_dir():
            raise ValueError(f'there is no folder "{data}"; --data is suite or a folder with a JSONL file')
        return own.read(place, limit, seed)
    chosen = list(tasks or METRICS_OF)
    return [sample for i, task in enumerate(chosen) for sample in draw([task], limit, 100 * seed + i)]


def profile(
    model: Any,
    processor: Any,
    name: str,
    samples: Sequence[Sample],
    place: Path,
    batch: int = 16,
    deep: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Run every analysis, and write profile.json, page.html and the results (.npz) into the folder `place`.

    Each step of `batch` questions is kept under `place`/steps; a run that was stopped goes on where it was. Returns
    what profile.json holds.

    Args:
        name: of the model, for the report.
        samples: questions, those of a task one after the other.
        deep: of how many questions of each task the costly analyses are made.

    Raises:
        ValueError: `place` holds steps of another run, or there are no samples.
    """
    if not samples:
        raise ValueError("there are no questions to profile: raise --limit, or give another --data")
    steps = [
        (list(chunk), start < deep)
        for _, group in groupby(samples, key=lambda sample: sample.task)
        for start, chunk in chunks(list(group), batch)
    ]
    check_plan(place, {"model": name, "config": model.config.to_dict(), "names": [s.name for s in samples],
                       "questions": [s.question for s in samples], "batch": batch, "deep": deep})  # fmt: skip
    parts: dict[str, list[Result]] = {}
    measured = samples[:: len(samples) // 20 + 1]
    shown = [sample for _, group in groupby(samples, key=lambda s: s.task) for sample in list(group)[:SHOWN]]
    with progress() as advance:
        for number, (chunk, costly) in enumerate(steps):
            for analysis, result in step(model, processor, chunk, costly, place / "steps" / f"{number:04d}").items():
                parts.setdefault(analysis, []).append(result)
            advance("analyses", number + 1, len(steps))
        sizes = [prompt_size(model, processor, sample) for sample in measured]
        seen = []
        for number, sample in enumerate(shown):
            seen.append(explore(model, processor, sample))
            advance("samples to look at", number + 1, len(shown))
    results = {analysis: Result.join(found) for analysis, found in parts.items()}
    for analysis, result in results.items():
        result.save(place / f"{analysis}.npz")
    prompt, visual = np.mean(sizes, axis=0).tolist()
    settings = {
        "seed": seed,
        "deep": deep,
        "draws": DRAWS,
        "eta": ETA,
        "width": results["windows"].settings["width"],
        **{package: version(package) for package in ("foveate", "transformers", "torch")},
    }
    whole = {
        "model": name,
        "layers": depth_of(model),
        "samples": len(samples),
        "tasks": {task: sum(s.task == task for s in samples) for task in dict.fromkeys(s.task for s in samples)},
        "prompt": prompt,
        "visual": visual,
        "settings": settings,
        "stages": [asdict(stage) for stage in stages(results["saliency"], results["windows"], results["withdrawal"])],
        "claims": [
            {**asdict(claim), "verdict": claim.verdict, "words": claim.words} for claim in claims(results, visual)
        ],
        "curves": {analysis: curves_of(result) for analysis, result in results.items()},
        "by_task": {
            task: curve(results["withdrawal"].of(task), "same") for task in dict.fromkeys(s.task for s in samples)
        },
    }
    whole = finite(whole)
    (place / "profile.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    (place / "page.html").write_text(page(whole, finite(seen)), encoding="utf-8")
    return whole


def step(model: Any, processor: Any, chunk: Sequence[Sample], costly: bool, place: Path) -> dict[str, Result]:
    """Every analysis of one batch of questions, from disk where it was made before."""
    wanted = CHEAP | (COSTLY if costly else {})
    files = {analysis: place / f"{analysis}.npz" for analysis in wanted}
    missing = [analysis for analysis, file in files.items() if not file.exists()]
    if missing:
        place.mkdir(parents=True, exist_ok=True)
        asked = [(sample.picture(), sample.question, sample.answers[0], sample.task) for sample in chunk]
        prepared = flow.prepare(processor, asked).to(model.device)
        for analysis in missing:
            made = files[analysis].with_suffix(".part")  # renamed when it is whole
            wanted[analysis](model, [prepared]).save(made)
            made.replace(files[analysis])
    return {analysis: Result.load(file) for analysis, file in files.items()}


def check_plan(place: Path, plan: Mapping[str, Any]) -> None:
    """Note what is run in the folder; refuse one that holds another run.

    Raises:
        ValueError: it does.
    """
    place.mkdir(parents=True, exist_ok=True)
    file, text = place / "plan.json", json.dumps(plan, default=str)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{place} holds a profile of other questions, settings or another model: choose another folder"
        )
    file.write_text(text, encoding="utf-8")


def chunks(items: list[Any], size: int) -> Iterable[tuple[int, list[Any]]]:
    """(start, items) of runs of up to `size` items."""
    return ((start, items[start : start + size]) for start in range(0, len(items), size))


def curves_of(result: Result) -> dict[str, Any]:
    """Means and intervals of everything that has a curve over layers."""
    found = {name: curve(result, name) for name, axes in result.axes.items() if axes and len(axes) <= 2}
    if result.name == "knockout":
        found["bias"] = curve(result, flow.bias_ratio(result))
    return found


def curve(result: Result, what: Any) -> dict[str, Any]:
    """Mean and interval over layers; with a further axis, one for each of its entries under "lines"."""
    mean, (low, high) = result.mean(what), result.interval(what, draws=DRAWS)
    axes = result.axes[what] if isinstance(what, str) else ("layers",)
    bounds = {"mean": mean, "low": low, "high": high}
    if len(axes) == 1:
        return {key: x.tolist() for key, x in bounds.items()}
    along = next(i for i, axis in enumerate(axes) if axis in ("layer", "layers"))
    names = result.labels[axes[1 - along]]
    moved = {key: np.moveaxis(x, along, -1) for key, x in bounds.items()}
    return {"lines": {str(n): {key: x[i].tolist() for key, x in moved.items()} for i, n in enumerate(names)}}


def finite(value: Any) -> Any:
    """The same with None where a number is no number, as JSON wants it."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# -- one sample for the explorer


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
