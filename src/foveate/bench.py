"""The benchmark: methods at equal cost on tasks. Plans, runs, measures and sums up; prints nothing.

A run lives in a folder. Its `answers.jsonl` grows by every answer, and a run that was killed goes on from there.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from foveate import ask
from foveate.suite import folder, runner, timing
from foveate.suite.journal import Journal
from foveate.suite.plan import parse_method, plan_settings
from foveate.suite.runner import Item, Setting
from foveate.suite.summary import Row, summarise
from foveate.suite.tasks import METRICS_OF, Sample, draw

JOURNAL = "answers.jsonl"
Advance = Callable[[str, int, int], None]  # is told (what, done, of how many) as a run goes
PILOTS = 24  # prompts on which the cost of a method without a dial is found out


@dataclass(frozen=True)
class Request:
    """What a benchmark is asked to do."""

    model: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]  # of the suite, or folders
    limit: int  # questions of each task
    seed: int
    kind: str  # "keep" or "flops": what the dial holds equal
    targets: tuple[float, ...]
    batch: int
    timed: int  # prompts that are timed
    rounds: int  # how often


@dataclass(frozen=True)
class Speed:
    """Times and memory of a setting. Seconds pair up with the dense setting's, entry by entry."""

    first: list[float]  # seconds to the first token
    each: list[float]  # seconds for each token after it
    peak_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Report:
    """All that a benchmark found out."""

    plan: dict[str, Any]
    samples: list[Sample]
    rows: list[Row]
    speed: dict[str, Speed]  # by setting; empty if nothing was timed
    errors: list[dict[str, Any]]  # records of the samples that failed


def bench(model: Any, processor: Any, request: Request, place: Path, advance: Advance) -> Report:
    """Run a benchmark in the folder `place`, or go on with the one that is there.

    Raises ValueError for unknown methods or tasks, a cost that a method cannot reach, and a folder with another run;
    NotImplementedError for a model that cannot be pruned.
    """
    samples = samples_of(request)
    pilots = pilots_of(model, processor, samples)
    settings = plan_settings(model, processor, request.methods, request.kind, request.targets, pilots)
    plan = plan_of(model, request, samples, settings)
    journal = Journal(place / JOURNAL, plan)

    told = counting(advance, "answers", len(samples) * len(settings))
    runner.run(model, processor, samples, settings, journal, request.batch, told)
    if request.timed and request.rounds:
        told = counting(advance, "timed rounds", request.rounds)
        timing.measure(model, spread(pilots, request.timed), settings, journal, request.rounds, told)
    return Report(
        plan=plan,
        samples=samples,
        rows=summarise(samples, settings, journal.answers),
        speed=speed_of(settings, journal),
        errors=[found for found in journal.answers.values() if "error" in found],
    )


def counting(advance: Advance, what: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more there are, and tells `advance` how many there are in all."""
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        advance(what, done, total)

    return told


def samples_of(request: Request) -> list[Sample]:
    """The questions of all tasks: of the suite's by name, of a folder of the user's own by path."""
    folders = [task for task in request.tasks if task not in METRICS_OF and Path(task).expanduser().is_dir()]
    names = [task for task in request.tasks if task not in folders]
    own = [
        sample
        for place in folders
        for sample in folder.read(Path(place).expanduser().resolve(), request.limit, request.seed)
    ]
    samples = [*draw(names, request.limit, request.seed), *own]
    if not samples:
        raise ValueError("there is no question: give --tasks and a --limit of at least 1")
    return samples


def pilots_of(model: Any, processor: Any, samples: Sequence[Sample]) -> list[Item]:
    """A few prompts that stand for all. Raises the first error if not one of them can be prepared."""
    found = [
        runner.attempt(lambda sample=sample: runner.item_of(model, processor, sample))
        for sample in spread(samples, PILOTS)
    ]
    items = [item for item in found if isinstance(item, Item)]
    if not items:
        raise ValueError(f"not one question can be asked: {found[0]}")
    return items


def spread(things: Sequence[Any], count: int) -> list[Any]:
    """`count` of the things, evenly spaced."""
    count = min(count, len(things))
    return [things[(2 * i + 1) * len(things) // (2 * count)] for i in range(count)]


def plan_of(model: Any, request: Request, samples: Sequence[Sample], settings: Sequence[Setting]) -> dict[str, Any]:
    """What decides the answers: a run goes on only under the same plan."""
    asked = [(sample.name, sample.question, sample.answers, sample.metrics, sample.kind) for sample in samples]
    return {
        "model": request.model,
        "weights": fingerprint(model),
        "tasks": dict(Counter(sample.task for sample in samples)),
        "questions": zlib.crc32(repr(asked).encode()),
        "seed": request.seed,
        "equal": request.kind,
        "points": list(request.targets),
        "settings": {s.name: str(s.method) if s.method else "dense" for s in settings},
        "batch": request.batch,
        "timed_prompts": request.timed,
        "rounds": request.rounds,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config.get_text_config()._attn_implementation,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def fingerprint(model: Any) -> int:
    """A checksum over the beginning of every weight: enough to tell two checkpoints apart, and quick on large ones."""
    value = 0
    for weight in model.parameters():
        value = zlib.crc32(weight.detach().flatten()[:256].float().cpu().numpy().tobytes(), value)
    return value


def speed_of(settings: Sequence[Setting], journal: Journal) -> dict[str, Speed]:
    if not journal.rounds:
        return {}

    def seconds(setting: Setting, which: int) -> list[float]:
        return [pair[which] for found in journal.rounds for pair in found["seconds"][setting.name]]

    return {s.name: Speed(seconds(s, 0), seconds(s, 1), **journal.memory[s.name]) for s in settings}


def ratio(dense: Sequence[float], pruned: Sequence[float]) -> dict[str, float]:
    """How many times as fast, pair by pair: the median, and the middle 80 % of the pairs."""
    ratios = sorted(d / p for d, p in zip(dense, pruned, strict=True))
    return {
        "median": median(ratios),
        "low": ratios[len(ratios) // 10],
        "high": ratios[-1 - len(ratios) // 10],
    }


def load(request: Request, attn: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """Model and processor. What is wrong with the words of the request is told before the weights are read."""
    for word in request.methods:
        if word != "dense":
            parse_method(word)
    for target in request.targets:
        if not 0 < target <= 1:
            raise ValueError(f"--{request.kind} {target:g} is no share of the dense model's: give numbers from 0 to 1")
    return ask.load(request.model, attn, dtype, device)
