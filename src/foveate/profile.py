"""The job behind `foveate profile`: every analysis on a data set, in steps that survive a stop, then the report.

Loads, runs and writes; the curves are `foveate.flow`'s, the page is `foveate.report`'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from foveate import flow
from foveate.bench import fingerprint
from foveate.explorer import explore, prompt_size
from foveate.files import write
from foveate.flow.claims import claims
from foveate.flow.replay import depth_of
from foveate.flow.result import Result
from foveate.flow.stages import stages
from foveate.flow.withdrawal import ETA
from foveate.report.page import page
from foveate.report.progress import progress
from foveate.suite import folder as own
from foveate.suite.tasks import DRAWN, Sample, draw

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
DRAWS = 1000


def samples_of(data: str, tasks: Sequence[str], limit: int, seed: int) -> list[Sample]:
    """`limit` questions of each task: of the embedded suite, each task on scenes of its own, or of a user's folder."""
    if data != "suite":
        if tasks:
            raise ValueError("--tasks are those of the suite, and of a folder all are asked: leave --tasks out")
        place = Path(data).expanduser()
        if not place.is_dir():
            raise ValueError(f'there is no folder "{data}"; --data is suite or a folder with a JSONL file')
        return own.read(place, limit, seed)
    chosen = list(tasks or DRAWN)
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
    asked = [(sample.name, sample.question, sample.answers) for sample in samples]
    check_plan(place, {"model": name, "weights": fingerprint(model), "config": model.config.to_dict(),
                       "asked": asked, "batch": batch, "deep": deep})  # fmt: skip
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
            with suppress(NotImplementedError):  # visual tokens that form no one grid cannot be drawn on the picture
                seen.append(explore(model, processor, sample))
            advance("samples to look at", number + 1, len(shown))
    results = {analysis: Result.join(found) for analysis, found in parts.items()}
    for analysis, result in results.items():
        result.save(place / f"{analysis}.npz")
    prompt, visual = np.mean(sizes, axis=0).tolist()
    settings = {
        "seed": seed,
        "deep": max(Counter(results["knockout"].tasks).values()),  # whole batches, and no more than there are
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
    write(place / "profile.json", json.dumps(whole, indent=1))
    write(place / "page.html", page(whole, finite(seen)))
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
            wanted[analysis](model, [prepared]).save(files[analysis])
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
    write(file, text)


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
