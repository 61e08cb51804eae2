"""Where the time of a pruned prompt goes, what is left out of it, and how often the host would have to wait for a GPU.

    python benchmarks/profile_speed.py [--cell 150m-576-1] [--rounds 5] [--page docs/speed.md]

Prints three tables: operators of a dense prefill, of the ideal, of HiMAP's and of VisiPruner's (torch's profiler, self
time on the CPU), and VisiPruner's shallow layers beside the same layers of a dense model; the exact savings; and every
place where this library reads the value of a tensor that would lie on a GPU (see waits.py), in a prefill and in a
decode step.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter, defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import pad
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, StaticCache

import foveate
from bench_speed import Cell, clock, ideal, prompt, random_llava
from speed_tables import fill, markdown, spread
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


def savings(model: Any, inputs: dict[str, Any], method: Any, rounds: int) -> list[str]:
    """What is not computed or held: time of the last layer, bytes of a static cache, columns of padding."""
    ids, config = inputs["input_ids"], model.config.get_text_config()
    ratios, mib = [], 2**20

    def prefill(logits: int, **more: Any) -> float:
        start = clock()
        model(**{"past_key_values": DynamicCache(), **inputs, **more}, logits_to_keep=logits)
        return clock() - start

    def held(cache: StaticCache) -> float:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / mib

    def static() -> StaticCache:
        return StaticCache(config=config, max_cache_len=ids.shape[1] + 128)

    whole, cut, width, padded = static(), static(), DynamicCache(), DynamicCache()
    prefill(1, past_key_values=whole)
    with foveate.prune(model, method):
        for _ in range(rounds):
            ratios.append(1 - prefill(1) / prefill(2))
        prefill(1, past_key_values=cut)
        prefill(1, past_key_values=width)
        spare = {"attention_mask": pad(torch.ones_like(ids), (64, 0)), "input_ids": pad(ids, (64, 0))}
        prefill(1, past_key_values=padded, **spare)
    widths = f"{padded.get_seq_length(len(padded.layers) - 1)} and {width.get_seq_length(len(width.layers) - 1)}"
    return [f"{statistics.median(ratios):.1%}", f"{held(cut):.0f} of {held(whole):.0f} MiB", widths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="150m-576-1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", type=Path, help="a Markdown page to put the tables in")
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
            for method in (himap, visipruner):
                row.append(operators(model, inputs, foveate.prune(model, method)))  # installed as soon as it is made
            rounds.append(row)
        rows = [
            [kind, *(f"{statistics.median(r[i].get(kind, 0.0) for r in rounds[1:]):.1f}" for i in range(4))]
            for kind in (*KINDS, "all other")
        ]
        parts = [markdown(["ms", "dense", "HiMAP's ideal", "HiMAP", "VisiPruner"], rows)]

        pairs = []
        for _ in range(options.rounds + 1):
            dense = layer_times(model, inputs, nullcontext(), visipruner.shallow)
            shallow = layer_times(model, inputs, foveate.prune(model, visipruner), visipruner.shallow)
            pairs.append(shallow / dense)
        parts.append(f"VisiPruner's {visipruner.shallow} shallow layers over dense ones: {spread(pairs[1:])}")

        rows = [[name, *savings(model, inputs, method, options.rounds)] for name, method in methods.items()]
        head = [
            "not computed",
            "last layer, of prefill",
            "static cache",
            "width with and without 64 columns of padding",
        ]
        parts.append(markdown(head, rows))

        rows = [[name, *waits(model, inputs, method)] for name, method in methods.items()]
        parts.append(markdown(["waits", "prefill", "decode step", "with a static cache"], rows))
    text = "\n\n".join([*parts, f"({options.cell})"])
    print(text)
    if options.page:
        fill(options.page, text, "profile")


if __name__ == "__main__":
    main()
