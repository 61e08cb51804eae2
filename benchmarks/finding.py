"""What the embedded model does with what it sees: the profile, its two figures and the figures of docs/papers.md.

    python benchmarks/finding.py [--limit 200] [--deep 200] [--threads 2]

Runs `foveate profile` on mini (it goes on where it was stopped) and puts the page, the figures and the numbers into
docs/: finding.md and papers.md hold marked places that this fills.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from foveate import flow
from foveate.flow.plot import band
from foveate.flow.result import Result
from foveate.suite.tasks import DRAWN

DOCS = Path("docs")
STAGES = {"before": "#d9d4c8", "fusion": "#e0a458", "after": "#f0d9b5", "free": "#b9cfe4"}


def draw(axes: Any, result: Result, what: Any, label: str = "") -> None:
    mean, (low, high) = result.mean(what), result.interval(what)
    band(axes, range(len(mean)), mean, low, high, label)


def three_stages(results: dict[str, Result], profile: dict[str, Any]) -> Figure:
    """Hiding the picture up to a layer and from a layer on, over the stages that follow from it."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    at = {stage["name"]: stage["layer"] for stage in profile["stages"]}
    edges = [0, at["fusion begins"], at["fusion ends"], at["vision can go"], profile["layers"]]
    for (name, colour), left, right in zip(STAGES.items(), edges[:-1], edges[1:], strict=True):
        if right > left:
            axes.axvspan(left - 0.5, right - 0.5, color=colour, alpha=0.45, linewidth=0)
            words = {"free": "vision can go", "before": "before fusion", "after": "after fusion"}.get(name, name)
            axes.text(left - 0.4, 1.02, words, fontsize=8, transform=axes.get_xaxis_transform())
    draw(axes, results["windows"], "first_kl", "hidden from the text in layers 0 to k")
    draw(axes, results["withdrawal"], "kl", "withdrawn from layer k on")
    axes.set_yscale("log")
    axes.set_xlim(-0.5, profile["layers"] - 0.5)
    axes.set_xlabel("layer k")
    axes.set_ylabel("KL, nats")
    axes.legend(frameon=False, fontsize=8)
    return figure


def himap_figures(results: dict[str, Result]) -> Figure:
    """HiMAP's Figures 4, 5 and 6 for this model."""
    figure = Figure(figsize=(11.0, 3.3), layout="constrained")
    groups, inside, ratio = figure.subplots(1, 3)
    for name, label in (("S_sys", "system"), ("S_img", "image"), ("S_ins", "instruction")):
        draw(groups, results["saliency"], name, label)
    for name in ("S_vt", "S_vv"):
        draw(inside, results["saliency"], name, name)
    draw(ratio, results["knockout"], flow.bias_ratio(results["knockout"]), "")
    ratio.axhline(0, color="#5b6573", linewidth=0.8, linestyle=":")
    titles = (
        "Fig. 4: saliency that a group sends, per token",
        "Fig. 5: where the picture goes",
        "Fig. 6: bias ratio D",
    )
    for axes, title in zip((groups, inside, ratio), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("layer")
    groups.set_yscale("log")
    inside.set_yscale("log")
    groups.legend(frameon=False, fontsize=8)
    inside.legend(frameon=False, fontsize=8)
    return figure


def tables(profile: dict[str, Any]) -> dict[str, str]:
    """The marked places of finding.md."""

    def layer(stage: dict[str, Any], key: str) -> str:
        return "none" if stage[key] >= profile["layers"] else str(stage[key])

    stages = ["| stage | layer | 95 % interval | decided by |", "|---|---|---|---|"]
    for s in profile["stages"]:
        interval = f"{layer(s, 'low')} to {layer(s, 'high')}"
        stages.append(f"| {s['name']} | {layer(s, 'layer')} | {interval} | {s['figure']} |")
    claims = ["| paper | claim | here | measured |", "|---|---|---|---|"]
    cells = ([c["paper"], c["text"], c["verdict"], c["words"].replace("|", "\\|")] for c in profile["claims"])
    claims += [f"| {' | '.join(row)} |" for row in cells]
    by_task = ["| task | " + " | ".join(f"K={k}" for k in range(0, profile["layers"], 2)) + " |"]
    by_task += ["|---" * (1 + len(range(0, profile["layers"], 2))) + "|"]
    for task, curve in profile["by_task"].items():
        shares = (f"{100 * share:.0f} %" for share in curve["mean"][::2])
        by_task.append(f"| {task} | " + " | ".join(shares) + " |")
    counts = ", ".join(f"{count} {task}" for task, count in profile["tasks"].items())
    return {
        "stages": "\n".join(stages),
        "claims": "\n".join(claims),
        "tasks": "\n".join(by_task),
        "samples": f"{profile['samples']} questions ({counts})",
    }


def fill(page: Path, places: dict[str, str]) -> None:
    """Put new text into a page between <!--name--> and <!--/name-->."""
    text = page.read_text(encoding="utf-8")
    for name, new in places.items():
        gap = "\n" if "\n" in new else ""
        text = re.sub(
            rf"(<!--{re.escape(name)}-->).*?(<!--/{re.escape(name)}-->)",
            lambda m, new=new, gap=gap: f"{m[1]}{gap}{new}{gap}{m[2]}",
            text,
            flags=re.S,
        )
    page.write_text(text, encoding="utf-8")


def numbers(found: dict[str, Any]) -> dict[str, str]:
    """The marked places of papers.md: "squared.rank_correlation_of_tokens" and so on."""
    places = {}
    for part, values in found.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, dict):
                places |= {f"{part}.{name}.{key}": f"{entry:.2f}" for key, entry in value.items()}
            elif isinstance(value, list):
                places |= {f"{part}.{name}.{k}": f"{entry:.3g}" for k, entry in enumerate(value)}
                places[f"{part}.{name}.median"] = f"{float(np.median(value)):.3g}"
            else:
                places[f"{part}.{name}"] = f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default="200", help="questions of each task")
    parser.add_argument("--deep", default="200", help="of them for the costly analyses")
    parser.add_argument("--tasks", default=",".join(DRAWN))
    parser.add_argument("--dtype", default="bfloat16", help="as the checkpoint is stored; three times as fast here")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out", type=Path, default=Path("out/finding"))
    arguments = parser.parse_args()
    run = [sys.executable, "-m", "foveate", "profile", "--out", str(arguments.out), "--tasks", arguments.tasks]
    run += ["--limit", arguments.limit, "--deep", arguments.deep, "--threads", arguments.threads]
    run += ["--dtype", arguments.dtype]
    subprocess.run(run, check=True)
    profile = json.loads((arguments.out / "profile.json").read_text(encoding="utf-8"))
    results = {name: Result.load(arguments.out / f"{name}.npz") for name in profile["curves"]}
    (DOCS / "finding").mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.out / "page.html", DOCS / "finding" / "mini.html")
    three_stages(results, profile).savefig(DOCS / "finding" / "stages.png", dpi=120)
    himap_figures(results).savefig(DOCS / "finding" / "himap.png", dpi=120)
    fill(DOCS / "finding.md", tables(profile))
    subprocess.run([sys.executable, "benchmarks/paper_figures.py", "--out", str(DOCS / "papers")], check=True)
    found = json.loads((DOCS / "papers" / "numbers.json").read_text(encoding="utf-8"))
    fill(DOCS / "papers.md", numbers(found))


if __name__ == "__main__":
    main()
