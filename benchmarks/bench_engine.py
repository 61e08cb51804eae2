"""What the engine itself costs: realised against ideal time saving of a prefill, and hooks in decode.

The model is a random LLaVA, 16 layers x 1024, with 576 image tokens. Ideal is the same model with that many tokens in
those layers and nothing else to do: no decision and no mask, the first so many hidden states just go on. Each round
runs dense, ideal and pruned once, in turn, on one thread; a saving is (dense - pruned) / (dense - ideal) of one round,
and the table shows medians over the rounds with the quartiles. VisiPruner does all its work, but its decisions are
replaced by the outcome published as typical (filter at layer 15 of 32, 10 tokens kept, exit at 24), since a random
model has none.

    python benchmarks/bench_engine.py [--rounds 9] [--dtype float32] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import foveate
from foveate.methods import Method
from foveate.pruning.view import Decide, View

LAYERS, WIDTH, IMAGE, SYSTEM, TEXT = 16, 1024, 576, 35, 36
IMAGE_ID = 31999


@dataclass(frozen=True)
class Given(Method):
    """Kept sets known in advance: (layer, columns of the prompt to keep)."""

    plan: tuple[tuple[int, tuple[int, ...]], ...]
    name = "given"

    def cuts(self, layers: int) -> Sequence[int]:
        return [layer for layer, _ in self.plan]

    def decide(self, view: View) -> Tensor:
        columns = torch.tensor(dict(self.plan)[view.layer])
        return torch.isin(view.position, columns)


@dataclass(frozen=True)
class TypicalVisiPruner(foveate.VisiPruner):
    """VisiPruner with all its work done and its decisions replaced by the published typical outcome."""

    def start(self) -> Decide:
        search, outcome = super().start(), dict(self.schedule(LAYERS, IMAGE))

        def decide(view: View) -> Tensor:
            search(view)
            if view.layer not in outcome:
                return view.visual
            return view.visual & (view.visual.cumsum(1) <= outcome[view.layer])

        return decide


def random_llava(dtype: torch.dtype) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=336,
            patch_size=14,
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=32000,
            hidden_size=WIDTH,
            intermediate_size=2816,
            num_hidden_layers=LAYERS,
            num_attention_heads=16,
            num_key_value_heads=16,
        ).to_dict(),
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=dtype).eval()


def prompt(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 31000, (SYSTEM + TEXT,), generator=generator)
    ids = torch.cat([text[:SYSTEM], torch.full((IMAGE,), IMAGE_ID), text[SYSTEM:]])[None]
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@contextmanager
def ideal(model: LlavaForConditionalGeneration, schedule: Sequence[tuple[int, int]]) -> Iterator[None]:
    """From each (layer, kept) on, the layers are simply given that many tokens: the first ones, at their positions."""
    counts, rope = dict(schedule), {}

    def hook(layer: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0]
        if layer in counts:
            tokens = SYSTEM + counts[layer] + TEXT
            hidden = hidden[:, :tokens].clone()
            rope["cut"] = tuple(x[:, :tokens].clone() for x in kwargs["position_embeddings"])
        return (hidden,), {**kwargs, "position_embeddings": rope["cut"]}

    handles = [
        model.get_decoder().layers[layer].register_forward_pre_hook(partial(hook, layer), with_kwargs=True)
        for layer in range(min(counts), LAYERS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()  # of the one thread, whoever else is on the machine
    run()
    return time.thread_time() - start


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def bench_prefill(
    model: LlavaForConditionalGeneration, inputs: dict[str, Tensor], method: Method, rounds: int
) -> list[str]:
    def run() -> object:
        return model(**inputs, logits_to_keep=1, use_cache=True)

    schedule = (
        method.schedule(LAYERS, IMAGE) if not isinstance(method, Given) else [(k, len(c)) for k, c in method.plan]
    )
    times: dict[str, list[float]] = {"dense": [], "ideal": [], "pruned": []}
    for number in range(rounds + 1):  # the first round warms up
        row = {"dense": seconds(run)}
        with ideal(model, schedule):
            row["ideal"] = seconds(run)
        with foveate.prune(model, method):
            row["pruned"] = seconds(run)
        if number:
            for name, value in row.items():
                times[name].append(value)
    triples = list(zip(times["dense"], times["ideal"], times["pruned"], strict=True))
    low, saving, high = quartiles([(dense - pruned) / (dense - best) for dense, best, pruned in triples])
    speedup = statistics.median(dense / pruned for dense, _, pruned in triples)
    possible = statistics.median(dense / best for dense, best, _ in triples)
    dense = statistics.median(times["dense"])
    cuts = ", ".join(f"{layer}: {count}" for layer, count in schedule)
    return [
        cuts,
        f"{dense * 1e3:.0f} ms",
        f"{possible:.2f}x",
        f"{speedup:.2f}x",
        f"{saving:.1%} ({low:.1%} to {high:.1%})",
    ]


def bench_decode(model: LlavaForConditionalGeneration, inputs: dict[str, Tensor], method: Method, rounds: int) -> str:
    """Time of a decode step with the hooks over the same step, on a copy of the same cache, without them."""
    token, position = torch.tensor([[5]]), torch.tensor([[inputs["input_ids"].shape[1]]])
    cache = DynamicCache(config=model.config.get_text_config())
    with foveate.prune(model, method):
        model(**inputs, logits_to_keep=1, past_key_values=cache)
    copied = copy.deepcopy(cache)

    def step(past: DynamicCache) -> None:
        model(input_ids=token, past_key_values=past, position_ids=position, logits_to_keep=1)
        past.crop(-1)

    ratios = []
    for number in range(rounds * 10 + 1):
        with foveate.prune(model, method):
            hooked = seconds(lambda: step(cache))
        bare = seconds(lambda: step(copied))
        if number:
            ratios.append(hooked / bare - 1)
    low, middle, high = quartiles(ratios)
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--markdown", help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    model, inputs = random_llava(dtype), prompt(dtype)

    def given(*plan: tuple[int, int]) -> Given:
        return Given(tuple((layer, tuple(range(SYSTEM, SYSTEM + kept))) for layer, kept in plan))

    cases: list[tuple[str, Method]] = [
        ("kept sets given, as FastV", given((2, 288))),
        ("kept sets given, as HiMAP", given((2, 288), (8, 72))),
        ("kept sets given, as VTW", given((8, 0))),
        ("FastV, layer 2, keep 0.5", foveate.FastV()),
        ("HiMAP, layers 2 and 8, keep 0.5 and 0.25", foveate.HiMAP()),
        ("VTW, layer 8", foveate.VTW(layer=8)),
        ("VisiPruner, shallow 3, typical outcome", TypicalVisiPruner(shallow=3)),
    ]
    with torch.no_grad():
        rows = [
            [name, *bench_prefill(model, inputs, method, options.rounds)]
            for name, method in track(cases, description="prefill", disable=None)
        ]
        hooks = bench_decode(model, inputs, foveate.HiMAP(), options.rounds)
    head = [
        "method",
        "visual tokens from layer",
        "dense prefill",
        "ideal speed-up",
        "measured",
        "of the ideal saving (quartiles)",
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    versions = f"torch {torch.__version__}, {options.dtype}, one thread, {options.rounds} rounds"
    text = "\n".join([*lines, "", f"Hooks in decode: {hooks} of a step. ({versions})"])
    print(text)
    if options.markdown:
        with open(options.markdown, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
