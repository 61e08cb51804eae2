"""What two analyses cost: saliency in memory, the withdrawal curve in time, each beside the usual way to get it.

    python benchmarks/bench_flow.py

Saliency (8 layers, 8 heads, 1,024 and 2,048 tokens): peak memory over what the loaded model holds, against eager
attention with retained gradients. Each run is a process of its own. Withdrawal (16 layers, 647 tokens of which 576
visual): CPU time of the whole curve, against one prefill per layer with the visual tokens gone from it on, as in the
published search; pairs of runs, median. One thread, float32.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foveate
from foveate import flow


def model_and_batch(layers: int, width: int, tokens: int, visual: int, kernel: str):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=kernel).eval()
    mask = torch.zeros(1, tokens, dtype=torch.bool)
    mask[:, 35 : 35 + visual] = True
    return model, flow.Batch({"inputs_embeds": torch.randn(1, tokens, width)}, [[7]], visual=mask)


def eager_saliency(model: LlamaForCausalLM, batch: flow.Batch) -> None:
    """Every attention map of every layer, and its gradient, at once."""
    for p in model.parameters():
        p.requires_grad_(False)
    embeds = batch.inputs["inputs_embeds"].requires_grad_()
    out = model(inputs_embeds=embeds, use_cache=False, output_attentions=True, logits_to_keep=1)
    for weights in out.attentions:
        weights.retain_grad()
    torch.nn.functional.cross_entropy(out.logits[:, -1], batch.targets).backward()
    for weights in out.attentions:
        (weights * weights.grad).sum(1).abs()


def peak(way: str, tokens: int) -> float:
    """MiB above the loaded model, in this process."""
    model, batch = model_and_batch(8, 256, tokens, tokens - 128, "eager" if way == "eager" else "sdpa")
    with torch.no_grad():
        model(inputs_embeds=batch.inputs["inputs_embeds"][:, :64])  # what a first call allocates for good
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "eager":
        eager_saliency(model, batch)
    else:
        flow.saliency(model, [batch])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def withdrawal_times(pairs: int = 5) -> tuple[float, float, float]:
    """Median CPU seconds of the published search and of the curve by replay, and their median ratio."""
    model, batch = model_and_batch(16, 512, 647, 576, "sdpa")

    def search() -> None:
        model(**batch.inputs, use_cache=False, logits_to_keep=1)
        for layer in range(1, 16):
            with foveate.prune(model, foveate.VTW(layer=layer), visual=batch.visual):
                model(**batch.inputs, use_cache=False, logits_to_keep=1)

    flow.withdrawal(model, [batch])
    times = [(cpu(search), cpu(lambda: flow.withdrawal(model, [batch]))) for _ in range(pairs)]
    ratio = statistics.median(b / a for a, b in times)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), ratio


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        print(json.dumps(peak(sys.argv[1], int(sys.argv[2]))))
        return
    for tokens in (1024, 2048):
        runs = [
            json.loads(subprocess.check_output([sys.executable, __file__, way, str(tokens)], text=True))
            for way in ("eager", "tap")
        ]
        eager, tap = runs
        print(f"saliency, {tokens} tokens: eager {eager:.0f} MiB, foveate {tap:.0f} MiB, {tap / eager:.1%}")
    search, replay, ratio = withdrawal_times()
    print(f"withdrawal, 16 layers: one prefill a layer {search:.2f} s, foveate {replay:.2f} s, {ratio:.1%}")


if __name__ == "__main__":
    main()
