"""Time and memory of settings on a few prompts, apart from the answers."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

import foveate
from foveate.measure import cache_bytes, generate, time_one
from foveate.suite.journal import Journal
from foveate.suite.runner import Item, Setting

HOW_MEMORY = (
    "peak memory: of the prompt and one more token, beside the weights (CUDA: the allocator's peak; CPU: the highest "
    "sum of what torch's profiler saw allocated and freed)"
)


def measure(
    model: Any,
    items: Sequence[Item],
    settings: Sequence[Setting],
    journal: Journal,
    rounds: int,
    advance: Callable[[int], None],
) -> None:
    """Peak memory of each setting on the first item, then rounds in which every setting answers every item once.

    A round is recorded as a whole, so that what is compared ran within it. `advance` is told after each round.
    """
    inputs = [on_device(model, item) for item in items]
    for setting in settings:
        if setting.name not in journal.memory:
            with pruned(model, setting):
                figures = {"peak_bytes": peak_bytes(model, inputs[0]), "cache_bytes": cache_bytes(model, inputs[0])}
            journal.append([{"setting": setting.name, "memory": figures}])
    advance(len(journal.rounds))
    for number in range(len(journal.rounds), rounds):
        turn = number % len(settings)
        seconds: dict[str, list[tuple[float, float]]] = {setting.name: [] for setting in settings}
        for one in inputs:
            for setting in (*settings[turn:], *settings[:turn]):  # nobody is always first
                with pruned(model, setting):
                    seconds[setting.name].append(time_one(model, one))
        journal.append([{"round": number, "seconds": seconds}])
        advance(1)


def on_device(model: Any, item: Item) -> dict[str, Any]:
    return {k: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype) for k, x in item.inputs.items()}


def pruned(model: Any, setting: Setting) -> Any:
    return nullcontext() if setting.method is None else foveate.prune(model, setting.method)


def peak_bytes(model: Any, inputs: dict[str, Any]) -> int:
    """The most memory that a prompt and one more token take beside the weights.

    On CUDA by the allocator's own count. On a CPU by adding up what torch's profiler saw allocated and freed.
    """
    generate(model, inputs, 2)  # lazily made things are made now
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        generate(model, inputs, 2, min_new_tokens=2)
        return torch.cuda.max_memory_allocated() - before
    with profiled() as profile:
        generate(model, inputs, 2, min_new_tokens=2)
    return most_live(profile)


def most_live(profile: Any) -> int:
    """The highest sum, at any time, of what a profile with memory saw allocated and freed."""
    live = most = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@contextmanager
def profiled() -> Iterator[Any]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notes on starting and stopping
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield profile
