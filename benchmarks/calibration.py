"""What calibration gains on the embedded model: the tables and the picture of docs/calibrate.md.

    python benchmarks/calibration.py [--model FOLDER] [--limit 128] [--quoted 120] [--guarded 200] [--out FOLDER]

Finds a policy at 35 % of the exact FLOPs, compares it on fresh samples with every published default, task by task, and
shares of the score with fixed fractions at the same average cost; then draws 200 calibration splits for the guard's
bound. Every outcome is in journals under --out: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foveate
from finding import fill
from foveate import ask
from foveate.calibration import bound
from foveate.calibration.calibrate import Report, calibrate, plan_of
from foveate.calibration.data import kind_of, sets_of
from foveate.calibration.entries import seen_by
from foveate.calibration.figures import PUBLISHED
from foveate.calibration.replay import Outcome
from foveate.calibration.request import Request
from foveate.calibration.search import Search
from foveate.calibration.shares import with_shares
from foveate.calibration.trials import Trials, name_of
from foveate.methods import METHODS, Method
from foveate.report import calibration as report
from foveate.report.pareto import pareto
from foveate.report.progress import progress
from foveate.suite import statistics
from foveate.suite.dial import scale_layers
from foveate.suite.journal import Journal

DOCS = Path("docs")
ALPHAS = (0.01, 0.02, 0.05)
SPLITS = 200
TARGET = 0.35


def pairs_of(search: Search) -> dict[str, Method]:
    """Fixed fractions and shares of the score at the same average cost on the searched samples: FastV and HiMAP."""
    found = {}
    for family in ("fastv", "himap"):
        best = next((c for c in search.fitting if c.family == family), None)
        if best is not None:
            found[f"{family}, fractions"] = best.method
            found[f"{family}, shares"] = with_shares(best.method, best.cost, search)
    return found


def difference(mine: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[float, float, float]:
    """Agreement minus the other's, paired, in points, with its 95 % interval."""
    values = np.array([100.0 * (a.same - b.same) for a, b in zip(mine, other, strict=True)])
    (drawn,) = statistics.resamples([len(values)])
    return float(values.mean()), *statistics.interval(statistics.means(values, drawn))


def share(outcomes: Sequence[Outcome], dense: Sequence[Outcome]) -> float:
    return sum(o.flops for o in outcomes) / sum(o.flops for o in dense)


class Task:
    """One task's quoted samples, and what each method did to them."""

    def __init__(self, found: Report, samples: Sequence[Any], kinds: Sequence[str]):
        self.found, self.samples, self.kinds = found, samples, kinds

    def of(self, method: Method | None) -> list[Outcome]:
        outcomes = self.found.quoted[name_of(method)]
        return [outcomes[sample.name] for sample in self.samples]

    @property
    def policy(self) -> list[Outcome]:
        """Each sample under the entry that the rules choose for its question."""
        entries = self.found.policy.entries
        methods = [entries[kind_of(sample.question, self.kinds)].method for sample in self.samples]
        outcomes = zip(methods, self.samples, strict=True)
        return [self.found.quoted[name_of(method)][sample.name] for method, sample in outcomes]


def against_defaults(tasks: Mapping[str, Task], defaults: Mapping[str, Method]) -> tuple[str, list[tuple[str, bool]]]:
    """The table task by task, and where a default of equal or higher cost is ahead: in words, and if beyond chance."""
    lines = [f"| task | policy | {' | '.join(defaults)} |", "|---" * (2 + len(defaults)) + "|"]
    missed, whole = [], tasks["all"]
    spent = share(whole.policy, whole.of(None))
    dearer = [name for name, method in defaults.items() if share(whole.of(method), whole.of(None)) >= spent]
    for name, task in tasks.items():
        mine, dense = task.policy, task.of(None)
        cost = share(mine, dense)
        cells = [f"{100 * np.mean([o.same for o in mine]):.1f} at {100 * cost:.0f} %"]
        for default, method in defaults.items():
            other = task.of(method)
            gain, low, high = difference(mine, other)
            sign = "" if gain >= 0 or default not in dearer else " (!)" if high < 0 else " (?)"
            cells.append(f"{gain:+.1f} ({low:+.1f} to {high:+.1f}) at {100 * share(other, dense):.0f} %{sign}")
            if sign:
                missed.append((f"{name} against {default}: {gain:+.1f} points, {low:+.1f} to {high:+.1f}", high < 0))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines), missed


def compact(tasks: Mapping[str, Task], whole: Task, defaults: Mapping[str, Method]) -> str:
    """The comparison in a few lines: all questions together, and on how many tasks the policy is ahead."""
    mine, dense = whole.policy, whole.of(None)
    cells = f"{100 * share(mine, dense):.0f} % | **{100 * np.mean([o.same for o in mine]):.1f} %**"
    lines = [
        "| | decoder FLOPs | answers unchanged | the calibrated policy is ahead by | on tasks: ahead, level, behind |",
        "|---|---|---|---|---|",
        f"| **calibrated** | {cells} | | |",
    ]
    for name, method in defaults.items():
        other = whole.of(method)
        gain, low, high = difference(mine, other)
        gains = np.array([difference(task.policy, task.of(method))[0] for task in tasks.values()])
        counts = ", ".join(str(int(n.sum())) for n in (gains > 0, gains == 0, gains < 0))
        cells = f"{100 * share(other, dense):.0f} % | {100 * np.mean([o.same for o in other]):.1f} %"
        lines.append(f"| {name}, published | {cells} | {gain:+.1f} points ({low:+.1f} to {high:+.1f}) | {counts} |")
    return "\n".join(lines)


def told_of(missed: Sequence[tuple[str, bool]]) -> str:
    return f", but: {'; '.join(words for words, _ in missed)}" if missed else ""


def adaptive_table(tasks: Mapping[str, Task], pairs: Mapping[str, Method]) -> str:
    lines = [f"| task | {' | '.join(pairs)} |", "|---" * (1 + len(pairs)) + "|"]
    rows = {name: (task.of, task.samples) for name, task in tasks.items()}
    for name, (of, _) in rows.items():
        dense = of(None)
        cells = []
        for method in pairs.values():
            outcomes = of(method)
            agreement, kl = np.mean([o.same for o in outcomes]), np.mean([o.kl for o in outcomes])
            cells.append(f"{100 * agreement:.1f} (KL {kl:.3f}) at {100 * share(outcomes, dense):.1f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    whole = {name: [o for of, _ in rows.values() for o in of(method)] for name, method in pairs.items()}
    dense = [o for of, _ in rows.values() for o in of(None)]
    cells = [
        f"**{100 * np.mean([o.same for o in outcomes]):.1f}** (KL {np.mean([o.kl for o in outcomes]):.3f}) "
        f"at {100 * share(outcomes, dense):.1f} %"
        for outcomes in whole.values()
    ]
    return "\n".join([*lines, f"| all | {' | '.join(cells)} |"])


def guard_table(tuning: list[bound.Seen], pool: list[bound.Seen]) -> tuple[str, dict[str, Any]]:
    """Alpha asked, what was measured on the other half of the pool over `SPLITS` splits, reruns, and the true cost."""
    row = bound.row_of_thresholds(tuning)
    half = len(pool) // 2
    lines = [
        "| at most | bound held | differ, mean | differ, 95th percentile | run again or dense | FLOPs with reruns |",
        "|---|---|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for alpha in ALPHAS:
        differ, rerun, cost = [], [], []
        for split in range(SPLITS):
            order = np.random.default_rng([split, 7]).permutation(len(pool))
            calibration, fresh = ([pool[i] for i in part] for part in (order[:half], order[half:]))
            thresholds = bound.choose(row, calibration, alpha, 0.95, len(fresh))
            differ.append(np.mean([s.wrong(thresholds[s.kind]) for s in fresh]))
            rerun.append(np.mean([s.signal < thresholds[s.kind] for s in fresh]))
            cost.append(sum(s.costs(thresholds[s.kind]) for s in fresh) / sum(s.dense for s in fresh))
        held = float(np.mean(np.array(differ) <= alpha + 1e-12))
        figures[f"{alpha:g}"] = {"held": held, "cost": float(np.mean(cost)), "rerun": float(np.mean(rerun))}
        lines.append(
            f"| {100 * alpha:.0f} % | {100 * held:.1f} % of {SPLITS} | {100 * np.mean(differ):.2f} % | "
            f"{100 * np.percentile(differ, 95):.2f} % | {100 * np.mean(rerun):.1f} % | {100 * np.mean(cost):.1f} % |"
        )
    return "\n".join(lines), figures


def refused(model: Any, policy: Any) -> str:
    """What prune says to a model of the same shape with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).neg_()
    try:
        foveate.prune(other, policy).remove()
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini, or a folder with another checkpoint")
    parser.add_argument("--limit", type=int, default=128, help="questions of each task to search on")
    parser.add_argument("--quoted", type=int, default=120, help="others of each task, for the figures")
    parser.add_argument("--guarded", type=int, default=200, help="others of each task, for the guard's splits")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--tasks", default="", help="with commas; default: all that are drawn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/calibration"))
    parser.add_argument("--no-docs", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begin = time.monotonic()

    names = tuple(arguments.tasks.split(",")) if arguments.tasks else ()
    sets = sets_of("suite", names, (arguments.limit, arguments.quoted, arguments.guarded), 0)
    model, processor = ask.load(arguments.model, None, "auto", "cpu")
    request = Request(arguments.model, "flops", TARGET, trials=arguments.trials)
    with progress() as advance:
        found = calibrate(model, processor, request, sets, arguments.out, advance, also=pairs_of)
        kinds = [kind for kind in found.policy.entries if kind != "default"]
        chosen = {kind: entry.method for kind, entry in found.policy.entries.items()}

        def trials_of(name: str, samples: Any) -> Trials:
            journal = Journal(arguments.out / f"{name}.jsonl", plan_of(model, request, samples))
            return Trials(model, processor, samples, journal, 16, lambda sample: kind_of(sample.question, kinds))

        tuning = seen_by(trials_of("searched", sets.searched), chosen, lambda more: None)
        tuning += seen_by(trials_of("quoted", sets.quoted), chosen, lambda more: None)
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            advance("guard", done, len(sets.guarded))

        pool = seen_by(trials_of("guarded", sets.guarded), chosen, told)
    found.policy.save(arguments.out / "policy.json")

    by_task: dict[str, list[Any]] = {}
    for sample in sets.quoted:
        by_task.setdefault(sample.task, []).append(sample)
    tasks = {name: Task(found, samples, kinds) for name, samples in by_task.items()}
    layers = model.config.get_text_config().num_hidden_layers
    defaults = {name: scale_layers(METHODS[name](), (), layers) for name in PUBLISHED}
    everything, missed = against_defaults({**tasks, "all": Task(found, sets.quoted, kinds)}, defaults)
    short = compact(tasks, Task(found, sets.quoted, kinds), defaults)
    pairs = {point.name: point.method for point in found.points if point.name.endswith(("fractions", "shares"))}
    guard, figures = guard_table(tuning, pool)
    refusal = refused(model, found.policy)
    whole = Task(found, sets.quoted, kinds)
    spent = share(whole.policy, whole.of(None))
    checks = {
        f"the policy costs {100 * spent:.1f} % of dense": spent <= TARGET * 1.005,
        f"no default of equal or higher cost is ahead on any task{told_of(missed)}": not missed,
        f"none is ahead by more than chance explains{told_of([one for one in missed if one[1]])}": not any(
            beyond for _, beyond in missed
        ),
        "the bound holds in at least 95 % of the splits": all(f["held"] >= 0.95 for f in figures.values()),
        f"at 2 % with reruns {100 * figures['0.02']['cost']:.1f} % of dense is spent": figures["0.02"]["cost"] < 1,
        f"a model with other weights is refused: {refusal.partition(', and ')[2] or 'no'}": bool(refusal),
    }
    shown = replace(found, points=[p for p in found.points if p.name not in pairs])
    told_points = report.as_markdown(shown).split("\n", 2)[2].strip().replace("## ", "### ")
    places = {
        "compact": short,
        "points": told_points,
        "defaults": everything,
        "adaptive": adaptive_table(tasks, pairs),
        "guard": guard,
        "checks": "\n".join(f"- {'yes' if fine else '**no**'}: {what}" for what, fine in checks.items()),
        "samples": f"{len(sets.searched)} questions to search on, {len(sets.quoted)} others to quote figures of and "
        f"{len(sets.guarded)} others for the guard",
    }
    for name, text in places.items():
        print(f"\n## {name}\n{text}")
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{minutes:.1f} minutes")
    (arguments.out / "checks.json").write_text(json.dumps({**checks, "guard": figures}, indent=1), encoding="utf-8")
    tried = [(c.cost, c.agreement) for c in found.candidates]
    picture = arguments.out / "pareto.png"
    pareto(report.marks(shown), tried, TARGET, picture)
    if not arguments.no_docs:
        (DOCS / "calibrate").mkdir(parents=True, exist_ok=True)
        (DOCS / "calibrate" / "pareto.png").write_bytes(picture.read_bytes())
        fill(DOCS / "calibrate.md", places)


if __name__ == "__main__":
    main()
