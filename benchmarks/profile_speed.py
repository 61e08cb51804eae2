"""Where the time of a pruned prompt goes, and how often the host would have to wait for a GPU.

    python benchmarks/profile_speed.py [--cell 150m-576-1] [--rounds 5]

Prints three tables: operators of a dense prefill, of the ideal and of HiMAP's (torch's profiler, self time on the CPU);
VisiPruner's shallow layers beside the same layers of a dense model; and every place where this library reads the value
of a tensor that would lie on a GPU (see waits.py), in a prefill and in a decode step.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter, defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, StaticCache

import foveate
from bench_speed import Cell, clock, ideal, markdown, prompt, random_llava, spread
from waits import Waits

KINDS = {  # operators by what they are for; the rest is "all other"
    "matrix products": ("mm", "addmm", "bmm"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "elementwise, norms": ("mul", "add", "silu", "pow", "mean", "rsqrt", "neg", "sum"),
    "copies (cache, rope)": ("cat", "copy_", "clone", "contiguous"),
    "gathering survivors": ("index_select", "gather", "sort", "argsort", "cumsum", "scatter"),
    "probabilities of rows": ("_softmax", "masked_fill_", "le", "bitwise_not"),
}


def operators(model: Any, inputs: dict[str, Any], context: AbstractContextManager) -> dict[str, float]:
    """Milliseconds by kind of operator."""
    with context, profile(activities=[ProfilerActivity.CPU]) as seen:
        model(**inputs, past_key_values=DynamicCache(), logits_to_keep=2)
    spent: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if name in names), "all other")
        spent[kind] += event.self_cpu_time_total / 1000
    return spent


def layer_times(model: Any, inputs: dict[str, Any], context: AbstractContextManager, layers: int) -> float:
    """Seconds from the start of layer 0 to the start of layer `layers`."""
    ticks: list[float] = []
    handles = [
        model.get_decoder().layers[i].register_forward_pre_hook(lambda *_: ticks.append(clock())) for i in (0, layers)
    ]
    try:
        with context:
            model(**inputs, past_key_values=DynamicCache(), logits_to_keep=2)
    finally:
        for handle in handles:
            handle.remove()
    return ticks[1] - ticks[0]


def waits(model: Any, inputs: dict[str, Any], method: Any) -> list[str]:
    """Waits of this library in a prefill, and in a decode step with a dynamic and with a static cache."""
    ids = inputs["input_ids"]
    step = {"input_ids": ids[:, :1], "position_ids": torch.full_like(ids[:, :1], ids.shape[1])}
    cells = []
    with foveate.prune(model, method):
        caches = DynamicCache(), StaticCache(config=model.config.get_text_config(), max_cache_len=ids.shape[1] + 8)
        for cache in caches:
            with Waits(["foveate/pruning/", "foveate/methods/"]) as found:
                model(**inputs, past_key_values=cache, logits_to_keep=1)
            if cache is caches[0]:
                places = Counter(place for place, _ in found.found)
                cells.append(", ".join(f"{count} in {place}" for place, count in places.items()))
            with Waits(["foveate/pruning/", "foveate/methods/"]) as found:
                model(**step, past_key_values=cache, logits_to_keep=1)
            cells.append(str(len(found.found)))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="150m-576-1")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    cell = Cell.of(options.cell)
    model, inputs, methods = random_llava(cell, "cpu", "sdpa"), prompt(cell, "cpu"), cell.methods()
    himap, visipruner = methods["himap"], methods["visipruner"]

    with torch.no_grad():
        rounds = []
        for _ in range(options.rounds + 1):  # the first one warms up
            row = [operators(model, inputs, nullcontext())]
            row.append(operators(model, inputs, ideal(model, himap.schedule(cell.layers, cell.visual))))
            row.append(operators(model, inputs, foveate.prune(model, himap)))  # installed as soon as it is made
            rounds.append(row)
        rows = [
            [kind, *(f"{statistics.median(r[i].get(kind, 0.0) for r in rounds[1:]):.1f}" for i in range(3))]
            for kind in (*KINDS, "all other")
        ]
        print(markdown(["ms", "dense", "ideal", "HiMAP"], rows), end="\n\n")

        pairs = []
        for _ in range(options.rounds + 1):
            dense = layer_times(model, inputs, nullcontext(), visipruner.shallow)
            shallow = layer_times(model, inputs, foveate.prune(model, visipruner), visipruner.shallow)
            pairs.append(shallow / dense)
        print(f"VisiPruner's {visipruner.shallow} shallow layers over dense ones: {spread(pairs[1:])}\n")

        rows = [[name, *waits(model, inputs, method)] for name, method in methods.items()]
        print(markdown(["waits", "prefill", "decode step", "with a static cache"], rows))


if __name__ == "__main__":
    main()
