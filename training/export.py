"""Writes a trained mini as a Hugging Face checkpoint folder, and the training curves as a picture.

python training/export.py training/runs/whole/checkpoint.pt src/foveate/mini
"""

import json
import sys
from pathlib import Path

import torch
from transformers import GenerationConfig


def export(llava, processor, folder: Path) -> None:
    """Weights in bfloat16, configuration, generation configuration, tokenizer and processor."""
    llava = llava.to(torch.bfloat16)
    llava.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False, max_new_tokens=48
    )
    llava.save_pretrained(folder)
    processor.save_pretrained(folder)


def plot(folder: Path) -> None:
    """log.jsonl -> curves.png: the loss, and the share of right answers per task (or per kind of patch word)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = folder / "log.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not rows:
        return
    names = sorted({k for row in rows for k in row} - {"step", "seconds", "loss"})
    tasks = [n for n in names if not n.startswith("patch ")] or names
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="0.3", linewidth=1)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for i, name in enumerate(tasks):
        kept = [r for r in rows if name in r]
        right.plot([r["step"] for r in kept], [r[name] for r in kept], label=name, linewidth=1, color=f"C{i % 10}",
                   linestyle="--" if i >= 10 else "-")  # fmt: skip
    right.set(xlabel="step", ylabel="right answers", ylim=(0, 1))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


def main() -> None:
    from tokenizer import make_processor, run_tokenizer
    from train import RUNS, Mini

    tokenizer = run_tokenizer(RUNS / "tokenizer")
    mini = Mini(tokenizer)
    master = torch.load(sys.argv[1], map_location="cpu")["optimiser"]["master"]
    mini.load_state_dict(master, strict=False)
    export(mini.llava, make_processor(tokenizer), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
