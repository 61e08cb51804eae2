"""The README's table of quality at equal cost, its picture, and which published claims hold on the embedded model.

    python benchmarks/quality.py [--limit 100] [--out out/quality]

Runs `foveate bench` (its command is printed; it goes on where it was stopped), then the stages of HiMAP's Table 4 one
by one on the same questions; fills the marked places of README.md and docs/bench.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foveate
from finding import fill
from foveate import ask
from foveate.bench import counting, fingerprint
from foveate.cost.tables import markdown
from foveate.methods import HiMAP, Method
from foveate.policy.schedule import Cut, Schedule
from foveate.report.progress import progress
from foveate.suite import runner, statistics, summary
from foveate.suite.journal import Journal
from foveate.suite.runner import Setting
from foveate.suite.tasks import METRICS_OF, Sample, draw

DOCS = Path("docs")
METHODS = "fastv,himap,himap:deep=sends,vtw,visipruner"
POINTS = ("50%", "33%", "15%")
FIRST, SECOND = 1, 3  # of 12 layers, as 2 and 8 of 32
STAGES: dict[str, Method] = {  # HiMAP's Table 4: which criterion in which stage
    "shallow, by the instruction": Cut(FIRST, 0.5, "instruction"),
    "shallow, by the visual tokens": Cut(FIRST, 0.5, "visual"),
    "instruction, then instruction": Schedule((Cut(FIRST, 0.5, "instruction"), Cut(SECOND, 0.25, "instruction"))),
    "instruction, then visual tokens": HiMAP(FIRST, 0.5, SECOND, 0.25),
    "instruction, then visual tokens, Eq. 9": HiMAP(FIRST, 0.5, SECOND, 0.25, deep="sends"),
}
STAGE_COST = dict(zip(STAGES, (1, 1, 2, 2, 2), strict=True))  # rows of as many cuts cost the same
Scores = dict[str, np.ndarray]  # task -> (samples,)


def answers_of(journal: Path) -> dict[tuple[str, str], Any]:
    """(setting, sample) -> record."""
    lines = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    return {(line["setting"], line["sample"]): line for line in lines if "sample" in line}


def run_stages(samples: Sequence[Sample], place: Path) -> dict[tuple[str, str], Any]:
    """The answers under every row of HiMAP's Table 4, and the dense ones."""
    settings = [Setting("dense", "dense", "dense", None)]
    settings += [Setting(name, name, "Table 4", method) for name, method in STAGES.items()]
    model, processor = ask.load(foveate.mini_path(), None, "auto", "cpu")
    plan = {"weights": fingerprint(model), "questions": len(samples), "settings": list(map(str, settings))}
    journal = Journal(place / "stages.jsonl", plan)
    with progress() as advance:
        told = counting(advance, "answers by stage", len(samples) * len(settings))
        runner.run(model, processor, samples, settings, journal, 16, told)
    return dict(journal.answers)


class Compared:
    """Scores of settings on the same questions, and differences between two of them."""

    def __init__(self, samples: Sequence[Sample], answers: Mapping[tuple[str, str], Any]):
        self.tasks: dict[str, list[Sample]] = {}
        for sample in samples:
            self.tasks.setdefault(sample.task, []).append(sample)
        sizes = [len(of_task) for of_task in self.tasks.values()]
        self.drawn = dict(zip(self.tasks, statistics.resamples(sizes), strict=True))
        names = dict.fromkeys(setting for setting, _ in answers)
        self.scores: dict[str, Scores] = {name: self.scores_of(name, answers) for name in names}

    def scores_of(self, name: str, answers: Mapping[tuple[str, str], Any]) -> Scores:
        setting = Setting(name, name, "", None)
        return {task: summary.scores_of(of_task, setting, answers) for task, of_task in self.tasks.items()}

    def quality(self, name: str) -> float:
        return 100 * summary.quality(self.scores[name], self.scores["dense"])

    def versus(self, mine: str, other: str, only: Sequence[str] = ()) -> summary.Versus:
        """By how much more of the dense score `mine` keeps than `other`: points in a hundred, paired."""
        a, b, dense = (self.chosen(name, only) for name in (mine, other, "dense"))
        found = summary.quality_versus(a, b, dense, {task: self.drawn[task] for task in a})
        return summary.Versus(100 * found.difference, (100 * found.interval[0], 100 * found.interval[1]))

    def chosen(self, name: str, only: Sequence[str]) -> Scores:
        return {t: s for t, s in self.scores[name].items() if not only or t in only}


def in_words(versus: summary.Versus) -> str:
    low, high = versus.interval
    return f"{versus.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def better(versus: summary.Versus, margin: float = 0.0) -> str:
    """Whether "mine is better than the other, or worse by less than `margin`" holds, with 95 % confidence."""
    low, high = versus.interval
    return "holds" if low > -margin else "does not hold" if high < -margin else "not shown"


def claims_table(found: Compared) -> str:
    """The published claims, each as a paired difference of the share of the dense score that is kept."""
    lines: list[Sequence[str]] = [("paper", "claim", "difference, points", "here")]

    def claim(paper: str, words: str, versus: summary.Versus, margin: float = 0.0) -> None:
        lines.append((paper, words, in_words(versus), better(versus, margin)))

    for point in POINTS:
        claim("FastV", f"beats random at {point}", found.versus(f"fastv {point}", f"random {point}"))
    for point in POINTS:
        claim("HiMAP", f"beats FastV at {point}", found.versus(f"himap {point}", f"fastv {point}"))
    for point in POINTS:
        claim("HiMAP", f"beats random at {point}", found.versus(f"himap {point}", f"random {point}"))
    claim("HiMAP", "loses at most 1 point at 33% (published at 25%)", found.versus("himap 33%", "dense"), 1.0)
    claim("VTW", "all visual tokens can go at half depth: at most 1 point", found.versus("vtw 50%", "dense"), 1.0)
    for task in ("read", "describe"):
        claim("VTW", f"at most 1 point on {task}", found.versus("vtw 50%", "dense", only=(task,)), 1.0)
    claim("VTW", "beats random at 50%", found.versus("vtw 50%", "random 50%"))
    claim("VisiPruner", "its thresholds lose at most 5 points", found.versus("visipruner", "dense"), 5.0)
    claim("VisiPruner", "beats random at its cost", found.versus("visipruner", "random at visipruner's cost"))
    return markdown(lines)


def stages_table(found: Compared) -> str:
    """HiMAP's Table 4: what each criterion keeps of the dense score, and how it compares."""
    lines: list[Sequence[str]] = [("criterion", "of dense, %", "beside the row above, points")]
    names = list(STAGES)
    for above, name in zip((None, *names), names, strict=False):
        beside = ""
        if above is not None and STAGE_COST[above] == STAGE_COST[name]:
            beside = in_words(found.versus(name, above))
        lines.append((name, f"{found.quality(name):.1f}", beside))
    return markdown(lines)


def part(page: str, title: str) -> str:
    """A table of `foveate bench`'s own report."""
    return page.split(f"## {title}\n\n")[1].split("\n\n")[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="questions of each task")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = ",".join(METRICS_OF)
    command = ["bench", "--methods", METHODS, "--tasks", tasks, "--limit", str(options.limit), "-o", str(options.out)]
    print("foveate", *command)
    subprocess.run([sys.executable, "-m", "foveate", *command], check=True)
    samples = draw(list(METRICS_OF), options.limit, 0)
    page = (options.out / "bench.md").read_text(encoding="utf-8")
    claims = claims_table(Compared(samples, answers_of(options.out / "answers.jsonl")))
    stages = stages_table(Compared(samples, run_stages(samples, options.out)))
    shutil.copyfile(options.out / "tradeoff.png", DOCS / "bench.png")
    fill(Path("README.md"), {"quality": part(page, "Quality")})
    fill(DOCS / "bench.md", {"claims": claims, "stages": stages, "speed": part(page, "Time and memory")})
    print(claims, stages, sep="\n\n")


if __name__ == "__main__":
    main()
