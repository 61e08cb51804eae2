"""Each place where a paper and its released code differ, as a figure and a number, computed on a model.

    python benchmarks/paper_figures.py [MODEL] [--limit 16] [--out docs/papers]

Writes five small pictures and numbers.json. MODEL is a folder, a hub id or mini; questions come from the suite.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import foveate
from foveate import ask, flow
from foveate.flow.plot import band
from foveate.flow.replay import depth_of
from foveate.flow.result import Result
from foveate.flow.saliency import explain
from foveate.profile import samples_of

TASKS = ("existence", "colour", "count", "position", "read")
Numbers = dict[str, Any]


def sheet(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("layer")
    return figure, axes


def draw(axes: Any, result: Result, what: Any, label: str) -> None:
    mean, (low, high) = result.mean(what), result.interval(what)
    band(axes, range(len(mean)), mean, low, high, label)


def squared(model: Any, batches: list[flow.Batch]) -> tuple[Figure, Numbers]:
    """A^2 |dL/dA| (code) against |A dL/dA| (paper): S_vt over layers, each as a share of its sum."""
    figure, axes = sheet("S_vt by layer, share of its sum")
    shares = {}
    for name, label in (("exact", "paper: A x dL/dA"), ("released", "code: A squared x dL/dA")):
        result = flow.saliency(model, batches, reduce="meanabs", variant=name)  # type: ignore[arg-type]

        def share(mean: Any) -> np.ndarray:
            return mean["S_vt"] / mean["S_vt"].sum(-1, keepdims=True)

        draw(axes, result, share, label)
        shares[name] = result.mean(share)
    axes.legend(frameon=False, fontsize=8)
    moved = 0.5 * np.abs(shares["exact"] - shares["released"]).sum()
    ranks = []
    for batch in batches:
        visual = batch.layout(model).visual
        both = [explain(model, batch, "meanabs", variant).layers for variant in ("exact", "released")]  # type: ignore[arg-type]
        for a, b in zip(*both, strict=True):
            ranks += [spearman(x[v], y[v]) for x, y, v in zip(a.sent, b.sent, visual, strict=True)]
    return figure, {"share_of_S_vt_in_other_layers": float(moved), "rank_correlation_of_tokens": float(np.mean(ranks))}


def spearman(x: torch.Tensor, y: torch.Tensor) -> float:
    """Rank correlation of two vectors."""
    ranks = torch.stack([x, y]).argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def received(model: Any, batches: list[flow.Batch]) -> tuple[Figure, Numbers]:
    """What a group sends (paper, column sums) against what it receives (code, row sums), the image."""
    result = flow.saliency(model, batches, reduce="meanabs")
    figure, axes = sheet("saliency of the image, sum over edges")

    def sent(mean: Any) -> np.ndarray:
        return mean["flow"][..., :, 1].sum(-1)

    def got(mean: Any) -> np.ndarray:
        return mean["flow"][..., 1, :].sum(-1)

    draw(axes, result, sent, "paper: sent by visual tokens")
    draw(axes, result, got, "code: received by visual tokens")
    axes.legend(frameon=False, fontsize=8)
    ratio = result.mean(got) / result.mean(sent)
    return figure, {"received_over_sent_by_layer": [round(float(x), 3) for x in ratio]}


def aliased(model: Any, batches: list[flow.Batch]) -> tuple[Figure, Numbers]:
    """Blocking layer l (paper) against blocking l to the last (code, where the changed mask is an alias)."""
    depth = depth_of(model)
    alone = flow.knockout(model, batches, kinds=["visual-textual"])
    onward = flow.windows(model, batches, sweeps=("last",))
    figure, axes = sheet("KL when text cannot read the picture, nats")
    draw(axes, alone, lambda mean: mean["kl"][..., 0, :], "paper: in layer l")
    draw(axes, onward, "last_kl", "code: from layer l on")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    ratio = onward.mean("last_kl") / alone.mean(lambda mean: mean["kl"][..., 0, :])
    return figure, {"times_too_large_by_layer": [round(float(x), 2) for x in ratio], "layers": depth}


def sums(model: Any, batches: list[flow.Batch]) -> tuple[Figure, Numbers]:
    """HiMAP's second cut: attention received (code, column sum) against sent (Eq. 9 as printed, row sum)."""
    depth = depth_of(model)
    first = max(1, round(depth * 2 / 32))
    second = max(first + 1, round(depth * 8 / 32))
    kinds = {
        "code: received": {"deep": "receives"},
        "received, causal_normalised": {"deep": "receives", "causal_normalised": True},
        "Eq. 9: sent": {"deep": "sends"},
    }
    places: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    total = 0
    for batch in batches:
        for name, fields in kinds.items():
            with foveate.prune(model, foveate.HiMAP(layer1=first, layer2=second, **fields)) as pruned:
                with torch.no_grad():
                    model(**batch.inputs, use_cache=False, logits_to_keep=1)
                trace = pruned.trace
            for visual, stage in zip(trace.visual, trace.stages[-1].kept, strict=True):
                total = len(visual)
                places[name].append(torch.isin(visual, stage).numpy())
    figure, axes = sheet("HiMAP's second cut: how often each visual token is kept")
    axes.set_xlabel("visual token, in order")
    kept = {name: np.stack(masks) for name, masks in places.items()}
    for i, (name, masks) in enumerate(kept.items()):
        smooth = np.convolve(masks.mean(0), np.ones(12) / 12, mode="same")
        axes.plot(smooth, label=name, color=("#2f6fb0", "#3f8f5f", "#c2571a")[i], linewidth=1.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    code, other = kept["code: received"], kept["Eq. 9: sent"]
    order = np.arange(total) / total  # 0 is the first visual token, 1 the last
    where = {name: round(float((masks * order).sum() / masks.sum()), 3) for name, masks in kept.items()}
    both = (code & other).sum() / (code | other).sum()
    return figure, {"jaccard_of_kept_tokens": float(both), "mean_place_of_kept_tokens": where, **content_free()}


def content_free(visual: int = 288, system: int = 35) -> Numbers:
    """Column sums if every row attends evenly: the first visual token over the last, as summed and normalised."""
    n = system + visual
    even = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    column = even[system:, system:].sum(0)
    normalised = column / np.arange(visual, 0, -1)
    return {
        "content_free_first_over_last": round(float(column[0] / column[-1]), 1),
        "content_free_normalised": round(float(normalised[0] / normalised[-1]), 2),
    }


def wrong_target(model: Any, batches: list[flow.Batch], processor: Any) -> tuple[Figure, Numbers]:
    """The gradient of the token that the model emits against that of a look-alike it never emits."""
    tokenizer = processor.tokenizer
    figure, axes = sheet("S_img by layer, existence questions")
    yes_no = [b for b in batches if b.tasks[0] == "existence"]
    right = flow.saliency(model, yes_no)
    word = tokenizer.decode(yes_no[0].answers[0][0]).strip()
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]  # without the space that starts a word in a sentence
    wrong = flow.saliency(model, yes_no, target=ids[0])
    draw(axes, right, "S_img", "the answer's token")
    draw(axes, wrong, "S_img", f"token of {word!r} without its space")
    axes.legend(frameon=False, fontsize=8)
    ranks = []
    for batch in yes_no:
        visual = batch.layout(model).visual
        pair = [explain(model, batch).layers, explain(model, batch, target=ids[0]).layers]
        for a, b in zip(*pair, strict=True):
            ranks += [spearman(x[v], y[v]) for x, y, v in zip(a.sent, b.sent, visual, strict=True)]
    ratio = wrong.mean("S_img").sum() / right.mean("S_img").sum()
    return figure, {
        "loss_true": float(right.mean("loss")),
        "loss_wrong": float(wrong.mean("loss")),
        "size_over_true": float(ratio),
        "rank_correlation_of_tokens": float(np.mean(ranks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--limit", type=int, default=16, help="questions of each task")
    parser.add_argument("--out", type=Path, default=Path("docs/papers"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = ask.load(arguments.model, None, "auto", "auto")
    samples = samples_of("suite", TASKS, arguments.limit, seed=5)
    batches = []
    for start in range(0, len(samples), arguments.limit):
        part = samples[start : start + arguments.limit]
        asked = [(s.picture(), s.question, s.answers[0], s.task) for s in part]
        batches.append(flow.prepare(processor, asked).to(model.device))
    arguments.out.mkdir(parents=True, exist_ok=True)
    numbers: Numbers = {"model": arguments.model, "questions": len(samples), "tasks": list(TASKS)}
    for name, make in (
        ("squared", squared),
        ("received", received),
        ("aliased", aliased),
        ("sums", sums),
        ("wrong_target", lambda m, b: wrong_target(m, b, processor)),
    ):
        figure, numbers[name] = make(model, batches)
        figure.savefig(arguments.out / f"{name}.png", dpi=110)
        print(name, json.dumps(numbers[name]), flush=True)
    (arguments.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
