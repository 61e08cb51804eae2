"""How fast pruning is, beside the ideal: the same model with that many tokens in those layers and nothing else to do.

Models have random weights, in the shapes of LLaVA-1.5-7B and 13B (for a GPU) and of a LLaVA of 150M and of 1B, all with
as many layers as LLaVA-1.5-7B (13B: 40), so that the published layers mean what they mean there. The vision tower is
two layers of 64: it does not count. Everything that is compared runs in turn within one round, on one thread of a CPU
(timed by that thread's own clock) or between two events of a CUDA device; what is printed are medians over the rounds,
ratios with their quartiles.

- **prefill**: a forward of the prompt with a new KV cache and the logits of its last token.
- **of the ideal saving**: (dense - pruned) / (dense - ideal), round by round. The last layer is computed whole here, as
  in the ideal; "and last layer" is what a user gets, the last layer for the last token alone.
- **scoring**: what the method's decision itself takes, as a share of dense prefill.
- **per token**: decode steps, each in turn for dense and pruned, with caches of their own.

VisiPruner does all its work, but its decisions are replaced by the outcome published as typical (filter at layer 15 of
32, 10 tokens kept, exit at 24), since a random model has none.

    python benchmarks/bench_speed.py                            # the default cells, about a quarter of an hour
    python benchmarks/bench_speed.py --cells 150m-576-1,1b-8192-1 --rounds 3
    python benchmarks/bench_speed.py --device cuda --cells 7b-576-1,7b-2880-1,13b-576-1 --rounds 20 --tokens 128

A cell is model-visual tokens-batch. What was measured stays in `-o`, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate
from foveate.methods import Method
from foveate.pruning.view import Decide, View
from foveate.suite.journal import Journal
from foveate.suite.timing import most_live, profiled
from speed_tables import Measured, fill, report

SYSTEM, TEXT, IMAGE_ID = 35, 36, 31999
SHAPES = {  # layers, width, FFN, heads
    "tiny": (32, 64, 128, 2),  # to see that it runs
    "150m": (32, 576, 1408, 9),
    "1b": (32, 1536, 4096, 12),
    "7b": (32, 4096, 11008, 32),
    "13b": (40, 5120, 13824, 40),
}
IMAGES = {576: (1, 336), 2880: (5, 336), 8192: (8, 448)}  # visual tokens -> images, their size
ROUNDS = {"150m-576-1": 15, "150m-2880-1": 4, "1b-576-1": 3, "150m-576-8": 2, "150m-8192-1": 1}  # the default cells
TOKENS = {"150m-576-1": 128, "150m-2880-1": 16}


@dataclass(frozen=True)
class Cell:
    """A model's name, the visual tokens of a prompt, and how many prompts."""

    model: str
    visual: int
    batch: int

    @classmethod
    def of(cls, text: str) -> Cell:
        found = re.fullmatch(r"(\w+)-(\d+)-(\d+)", text)
        if not found or found[1] not in SHAPES or int(found[2]) not in IMAGES:
            raise ValueError(f"{text!r} is no cell: model-visual-batch, of {', '.join(SHAPES)} and {list(IMAGES)}")
        return cls(found[1], int(found[2]), int(found[3]))

    def __str__(self) -> str:
        return f"{self.model}-{self.visual}-{self.batch}"

    @property
    def layers(self) -> int:
        return SHAPES[self.model][0]

    def methods(self) -> dict[str, Method]:
        """Every method at its published setting for this depth."""
        deep = self.layers == 40
        return {
            "fastv": foveate.FastV(layer=3 if deep else 2, keep=0.5),
            "himap": foveate.HiMAP(layer1=2, keep1=0.5, layer2=8, keep2=0.25),
            "vtw": foveate.VTW(layer=20 if deep else 16),
            "visipruner": Typical(self.layers, self.visual),
            "random": foveate.Random(layer=3 if deep else 2, keep=0.5),
            "uniform": foveate.Uniform(layer=3 if deep else 2, keep=0.5),
        }


class Typical(foveate.VisiPruner):
    """VisiPruner with all its work done and its decisions replaced by the published typical outcome."""

    def __init__(self, layers: int, visual: int):
        super().__init__()
        object.__setattr__(self, "outcome", dict(self.schedule(layers, visual)))

    def start(self) -> Decide:
        search, outcome = super().start(), self.outcome

        def decide(view: View) -> Tensor:
            search(view)
            count = outcome.get(view.layer)
            return view.visual if count is None else view.visual & (view.visual.cumsum(1) <= count)

        return decide


def random_llava(cell: Cell, device: str, attention: str) -> LlavaForConditionalGeneration:
    layers, width, ffn, heads = SHAPES[cell.model]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGES[cell.visual][1],
            patch_size=14,
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=32000,
            hidden_size=width,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=16384,
        ).to_dict(),
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        make = LlavaForConditionalGeneration._from_config
        return make(config, attn_implementation=attention, dtype=torch.bfloat16).eval()


def prompt(cell: Cell, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 31000, (SYSTEM + TEXT,), generator=generator)
    ids = torch.cat([text[:SYSTEM], torch.full((cell.visual,), IMAGE_ID), text[SYSTEM:]]).repeat(cell.batch, 1)
    count, side = IMAGES[cell.visual]
    pixels = torch.randn(cell.batch * count, 3, side, side, generator=generator).bfloat16()
    return {"input_ids": ids.to(device), "pixel_values": pixels.to(device)}


@contextmanager
def ideal(model: Any, schedule: Sequence[tuple[int, int]]) -> Iterator[None]:
    """From each (layer, kept) on, the layers are simply given that many tokens: the first ones, at their positions."""
    counts, rope = dict(schedule), {}

    def hook(layer: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0]
        if layer in counts:
            tokens = SYSTEM + counts[layer] + TEXT
            hidden = hidden[:, :tokens].clone()
            rope["cut"] = tuple(x[:, :tokens].clone() for x in kwargs["position_embeddings"])
        return (hidden,), {**kwargs, "position_embeddings": rope["cut"]}

    layers = model.get_decoder().layers
    handles = [
        layers[layer].register_forward_pre_hook(partial(hook, layer), with_kwargs=True)
        for layer in range(min(counts), len(layers))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Bench:
    """One cell: a model, its prompt, and what was found out about them so far."""

    def __init__(self, cell: Cell, options: argparse.Namespace):
        self.cell, self.device = cell, options.device
        self.methods = {name: m for name, m in cell.methods().items() if name in options.methods.split(",")}
        self.schedules = {name: m.schedule(cell.layers, cell.visual) for name, m in self.methods.items()}
        self.rounds = options.rounds or ROUNDS.get(str(cell), 3)
        self.tokens = options.tokens or TOKENS.get(str(cell), 8)
        plan = {
            "cell": str(cell),
            "methods": list(self.methods),
            "tokens": self.tokens,
            "attention": options.attention,
            **machine(options.device),
        }
        self.journal = Journal(Path(options.output) / f"{cell}.jsonl", plan)
        self.model: Any = None
        self.attention = options.attention

    def run(self) -> None:
        needed = [] if len(self.journal.rounds) >= self.rounds else ["rounds"]
        needed += [] if ("all", "decode") in self.journal.answers else ["decode"]
        needed += [] if {"dense", *self.methods} <= set(self.journal.memory) else ["memory"]
        if not needed:
            return
        self.model, self.inputs = random_llava(self.cell, self.device, self.attention), prompt(self.cell, self.device)
        if "memory" in needed:
            self.measure_memory()  # warms up, too
        if "rounds" in needed:
            self.measure_rounds()
        if "decode" in needed:
            self.measure_decode()

    def prefill(self, logits: int = 1) -> Any:
        return self.model(**self.inputs, past_key_values=DynamicCache(), logits_to_keep=logits).past_key_values

    def pruned(self, name: str) -> Any:
        return nullcontext() if name == "dense" else foveate.prune(self.model, self.methods[name])

    def seconds(self, run: Callable[[], object]) -> float:
        if self.device == "cpu":
            start = clock()
            run()
            return clock() - start
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        before.record()
        run()
        after.record()
        torch.cuda.synchronize()
        return before.elapsed_time(after) / 1000

    def measure_memory(self) -> None:
        for name in ("dense", *self.methods):
            with self.pruned(name):
                cache = self.prefill()
                held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
                del cache
                peak = self.peak()
            self.journal.append([{"setting": name, "memory": {"peak": peak, "kv": held}}])
            print(f"{self.cell} {name}: peak {peak / 2**20:.0f} MiB, KV {held / 2**20:.1f} MiB", flush=True)

    def peak(self) -> int:
        """The most that a prefill takes beside the weights, its KV cache included."""
        if self.device == "cpu":
            with profiled() as profile:
                self.prefill()
            return most_live(profile)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.prefill()
        return torch.cuda.max_memory_allocated() - before

    def measure_rounds(self) -> None:
        for number in range(len(self.journal.rounds), self.rounds):
            row = {"dense": self.seconds(self.prefill)}
            for name, method in self.methods.items():
                with ideal(self.model, self.schedules[name]):
                    row[f"{name} ideal"] = self.seconds(self.prefill)
                with foveate.prune(self.model, method):
                    row[name] = self.seconds(self.prefill)
                    row[f"{name} whole"] = self.seconds(partial(self.prefill, 2))
                with self.scoring(method) as spent, foveate.prune(self.model, method):
                    if number % 3 == 0:
                        self.prefill()
                        row[f"{name} scoring"] = sum(spent)
            self.journal.append([{"round": number, "seconds": row}])
            print(f"{self.cell} round {number}: dense {row['dense']:.2f} s", flush=True)

    @contextmanager
    def scoring(self, method: Method) -> Iterator[list[float]]:
        """The seconds that each decision of a method takes, while it runs in here."""
        spent: list[float] = []
        start = method.start

        def timed() -> Decide:
            decide, kept = start(), []

            def watched(view: View) -> Any:
                spent.append(self.seconds(lambda: kept.append(decide(view))))
                return kept.pop()

            return watched

        object.__setattr__(method, "start", timed)
        try:
            yield spent
        finally:
            object.__delattr__(method, "start")

    def measure_decode(self) -> None:
        length = SYSTEM + self.cell.visual + TEXT
        caches: dict[str, Any] = {"dense": self.prefill()}
        for name in self.methods:
            with self.pruned(name):
                caches[name] = self.prefill()
        token = self.inputs["input_ids"][:, :1]
        steps: dict[str, list[float]] = {name: [] for name in caches}
        for number in range(self.tokens):
            position = torch.full_like(token, length + number)
            for name, cache in caches.items():
                call = {"input_ids": token, "position_ids": position, "past_key_values": cache, "logits_to_keep": 1}
                with self.pruned(name) if name in self.methods else nullcontext():
                    steps[name].append(self.seconds(lambda call=call: self.model(**call)))
        self.journal.append([{"setting": "all", "sample": "decode", "seconds": steps}])
        print(f"{self.cell} decode: dense {statistics.median(steps['dense']) * 1000:.1f} ms a token", flush=True)

    def measured(self) -> Measured:
        layers, width, ffn, heads = SHAPES[self.cell.model]
        title = (
            f"**{self.cell.model.upper()}, {self.cell.visual} visual tokens, batch {self.cell.batch}** ({layers} "
            f"layers x {width}, FFN {ffn}, {heads} heads, {SYSTEM + TEXT} other tokens, {self.attention}; "
            f"{len(self.journal.rounds)} rounds, {self.tokens} tokens)"
        )
        decode = self.journal.answers.get(("all", "decode"), {}).get("seconds", {})
        rounds = [row["seconds"] for row in self.journal.rounds]
        return Measured(
            str(self.cell), title, self.cell.visual, list(self.methods), rounds, decode, self.journal.memory
        )


def clock() -> float:
    """Seconds; of this thread alone if it computes by itself, so that others on the machine do not count."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def machine(device: str) -> dict[str, Any]:
    card = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "device": card,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "bfloat16",
    }


def processor() -> str:
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.exists() else ""
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return f"{name or platform.processor()}{' with AMX' if 'amx_bf16' in text else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=",".join(ROUNDS), help="model-visual-batch, ...")
    parser.add_argument("--methods", default="fastv,himap,vtw,visipruner", help="also: random, uniform")
    parser.add_argument("--rounds", type=int, help="of the prefill (default: 1 to 15)")
    parser.add_argument("--tokens", type=int, help="decode steps (default: 8 to 128)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2")
    parser.add_argument("-o", "--output", default="out/speed", help="folder of what was measured")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the tables in")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    transformers.logging.set_verbosity_error()
    cells = []
    with torch.no_grad():
        for text in options.cells.split(","):
            bench = Bench(Cell.of(text), options)
            bench.run()
            bench.model = None
            cells.append(bench.measured())
    facts = ", ".join(f"{key} {value}" for key, value in machine(options.device).items() if value is not None)
    tables = f"{report(cells)}\n\n({facts})"
    print(tables)
    if options.page:
        fill(options.page, tables)


if __name__ == "__main__":
    main()
