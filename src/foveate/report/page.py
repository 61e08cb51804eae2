"""The page of a profile: one HTML file that needs nothing else, from plain data. Runs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from foveate.report.charts import Chart, Line

STAGES = {"shallow": "before fusion", "middle": "fusion", "deep": "after fusion", "free": "vision can go"}


def page(profile: Mapping[str, Any], explorer: Sequence[Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
        profile: what `foveate profile` writes as profile.json.
        explorer: for each sample to look at: picture (data URL), grid, question, answers, maps, kept, words.
    """
    tasks = ", ".join(f"{count} {task}" for task, count in profile["tasks"].items())
    summary = (
        f"{profile['samples']} questions ({tasks}), {profile['layers']} layers, "
        f"{profile['visual']:.0f} visual tokens in a prompt of {profile['prompt']:.0f}. "
        "Shaded: 95 % intervals over questions."
    )
    fields = {
        "title": escape(profile["model"]),
        "summary": escape(summary),
        "stages": stage_bar(profile["stages"], profile["layers"]),
        "stage_rules": "".join(stage_row(stage, profile["layers"]) for stage in profile["stages"]),
        "charts": "".join(chart.html() for chart in charts(profile)),
        "claims": "".join(claim_row(claim) for claim in profile["claims"]),
        "made": escape(made(profile["settings"])),
        "explorer": json.dumps(explorer).replace("<", "\\u003c"),
    }
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def made(settings: Mapping[str, Any]) -> str:
    """How the figures were made."""
    return (
        f"Costly analyses (knockout, merging, single-layer skips) use up to {settings['deep']} questions of each task. "
        f"Intervals are percentiles of {settings['draws']} bootstrap resamples of the questions. What is predicted is "
        f"the first token of the answer. KL is in nats, KL(changed || unchanged). Layers count from 0. "
        f"Seed {settings['seed']}; foveate {settings['foveate']}, transformers {settings['transformers']}, "
        f"torch {settings['torch']}."
    )


def stage_bar(stages: Sequence[Mapping[str, Any]], depth: int) -> str:
    """A bar with a cell for each layer, and below it a mark with its interval for each stage."""
    at = {stage["name"]: stage["layer"] for stage in stages}
    begin, end, free = at["fusion begins"], at["fusion ends"], at["vision can go"]

    def kind(layer: int) -> str:
        if layer >= free:
            return "free"
        return "shallow" if layer < begin else "middle" if layer < end else "deep"

    cells = "".join(f'<div class="cell {kind(layer)}" title="layer {layer}">{layer}</div>' for layer in range(depth))

    def side(stage: Mapping[str, Any]) -> str:
        """Where the words stand beside the mark: where there is more room."""
        before, behind = min(stage["low"], stage["layer"]), depth - max(stage["high"], stage["layer"])
        return "left" if before > behind else ""

    marks = "".join(
        f'<div class="stage" style="--at:{stage["layer"]};--low:{stage["low"]};--high:{stage["high"]}">'
        f'<i class="span"></i><i class="pin"></i><b class="{side(stage)}">'
        f"{escape(stage['name'])} <small>{place(stage, depth)}</small></b></div>"
        for stage in stages
    )
    shown = {kind(layer) for layer in range(depth)}
    legend = "".join(f'<span class="swatch {k}">{name}</span>' for k, name in STAGES.items() if k in shown)
    return f'<div class="bar" style="--depth:{depth}"><div class="cells">{cells}</div>{marks}</div><p>{legend}</p>'


def place(stage: Mapping[str, Any], depth: int) -> str:
    """A stage's layer with its interval, in words."""
    layer, low, high = ("none" if stage[key] >= depth else stage[key] for key in ("layer", "low", "high"))
    return f"{layer}" if low == high else f"{layer} ({low} to {high})"


def stage_row(stage: Mapping[str, Any], depth: int) -> str:
    return (
        f"<tr><td>{escape(stage['name'])}</td><td>{place(stage, depth)}</td><td>{escape(stage['rule'])}</td>"
        f"<td>{escape(stage['figure'])}</td></tr>"
    )


def claim_row(claim: Mapping[str, Any]) -> str:
    verdict = claim["verdict"]
    mark = {"confirmed": "yes", "not confirmed": "no"}.get(verdict, "open")
    return (
        f"<tr><td>{escape(claim['paper'])}</td><td>{escape(claim['text'])}</td>"
        f'<td><span class="verdict {mark}">{escape(verdict)}</span></td><td>{escape(claim["words"])}</td></tr>'
    )


def charts(profile: Mapping[str, Any]) -> list[Chart]:
    """The curves in the order in which the story goes; those whose analysis was not run are left out."""
    curves = profile["curves"]

    def line(name: str, analysis: str, value: str, entry: str | None = None) -> Line:
        curve = curves[analysis][value]
        parts = [curve[key] if entry is None else curve["lines"][entry][key] for key in ("mean", "low", "high")]
        return Line(name, *parts)

    groups = ("system", "image", "instruction")
    withdrawn = sorted(profile["by_task"])
    planned: list[tuple[str, Any]] = [
        (
            "saliency",
            lambda: Chart(
                "Who sends information",
                "Saliency that each group of tokens sends, per token (HiMAP, Fig. 4).",
                "saliency",
                [line(g, "saliency", s) for g, s in zip(groups, ("S_sys", "S_img", "S_ins"), strict=True)],
            ),
        ),
        (
            "saliency",
            lambda: Chart(
                "Where the picture goes",
                "What visual tokens send to the text and to each other, per visual token (HiMAP, Fig. 5).",
                "saliency",
                [line("to the text, S_vt", "saliency", "S_vt"), line("to each other, S_vv", "saliency", "S_vv")],
            ),
        ),
        (
            "knockout",
            lambda: Chart(
                "Cutting one layer",
                "Mean KL when edges are blocked in that layer alone; the control blocks as many random edges.",
                "KL, nats",
                [line(kind, "knockout", "kl", kind) for kind in curves["knockout"]["kl"]["lines"]],
                log=True,
            ),
        ),
        (
            "knockout",
            lambda: Chart(
                "Bias ratio D",
                "log of what blocking inside the picture changes over what blocking towards the text changes, by the "
                "Jaccard index of the top 5 (HiMAP, Fig. 6). Above 0: the picture itself matters more.",
                "D",
                [line("D", "knockout", "bias")],
                mark=(0.0, ""),
            ),
        ),
        (
            "withdrawal",
            lambda: Chart(
                "Withdrawing the picture",
                "All visual tokens gone from layer K on, or left out of one layer only (VTW).",
                "KL, nats",
                [line("gone from layer K on", "withdrawal", "kl")]
                + ([line("left out of layer K", "skips", "skip_kl")] if "skips" in curves else []),
                log=True,
                mark=(profile["settings"]["eta"], f"VTW's threshold {profile['settings']['eta']:g}"),
            ),
        ),
        (
            "withdrawal",
            lambda: Chart(
                "The answer stays the same",
                "Share of unchanged answer tokens after withdrawal at layer K, by task; intervals in the numbers.",
                "share",
                [Line(task, *(profile["by_task"][task][key] for key in ("mean", "low", "high"))) for task in withdrawn],
            ),
        ),
        (
            "windows",
            lambda: Chart(
                "Hiding the picture from the text",
                f"In layers 0 to k, or in {profile['settings']['width']} layers from k on (VisiPruner, Fig. 3).",
                "KL, nats",
                [line("layers 0 to k", "windows", "first_kl"), line("a window from k", "windows", "window_kl")],
                log=True,
            ),
        ),
        (
            "merging",
            lambda: Chart(
                "One token takes all attention",
                "The text's attention on the picture merged into the first visual token (VisiPruner, Eq. 1).",
                "KL, nats",
                [line("in layers 0 to k", "merging", "first_kl"), line("in layer k alone", "merging", "kl")],
                log=True,
            ),
        ),
        (
            "allocation",
            lambda: Chart(
                "Where the answer position looks",
                "Shares of the last row's attention, mean over heads.",
                "share",
                [line(g, "allocation", "last", g) for g in groups],
            ),
        ),
        (
            "allocation",
            lambda: Chart(
                "Sinks",
                "Attention-weighted over plain mean length of visual value vectors: below 1, attention goes where "
                "little is to be read.",
                "ratio",
                [line("length ratio", "allocation", "norm_ratio"), line("share on sinks", "allocation", "sink_share")],
                mark=(1.0, ""),
            ),
        ),
        (
            "critical",
            lambda: Chart(
                "Critical tokens",
                "Visual tokens without which the answer position's output would point elsewhere: cos < 0.995.",
                "tokens",
                [line("critical", "critical", "critical")],
            ),
        ),
        (
            "critical",
            lambda: Chart(
                "Focus",
                "How many of the 10 most influential visual tokens stay the same from layer to layer (Jaccard).",
                "Jaccard",
                [line("focus", "critical", "focus")],
            ),
        ),
        (
            "lenses",
            lambda: Chart(
                "When the answer appears",
                "Probability of the true token through the logit lens, and agreement with the final answer.",
                "share",
                [line("true token", "lenses", "answer"), line("same as final", "lenses", "same")],
            ),
        ),
        (
            "lenses",
            lambda: Chart(
                "What attention brings in",
                "Rank of the true token in what the last row's attention brings from each group (value-output lens).",
                "rank, 0 is first",
                [line(g, "lenses", "value_rank", g) for g in groups],
            ),
        ),
    ]
    return [build() for analysis, build in planned if analysis in curves]
