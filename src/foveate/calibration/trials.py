"""Trials: methods tried on recorded prompts, every outcome in a journal, so that a stopped search goes on."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from statistics import fmean
from typing import Any

from foveate import cost
from foveate.calibration.replay import Asked, Outcome
from foveate.methods import Method
from foveate.policy.encoding import encoded
from foveate.policy.schedule import Dense
from foveate.suite.journal import Journal
from foveate.suite.runner import Item, item_of
from foveate.suite.tasks import Sample

DENSE = "dense"
MEMORY = 4 * 2**30  # bytes that recorded layers may take in all
WORST = 1.0  # nats: what a KL counts at most in a loss, lest one sample be all of it
Outcomes = Mapping[str, Outcome]  # by the sample's name


def name_of(method: Method | None) -> str:
    """A method and all its fields as one line."""
    return DENSE if method is None or isinstance(method, Dense) else json.dumps(encoded(method), separators=(",", ":"))


class Trials:
    """Some samples, asked in batches of one kind and task each; kinds and tasks take turns.

    Attributes:
        samples: the samples. batches: their batches.
        kind: tells a sample's kind.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Sample],
        journal: Journal,
        batch: int,
        kind: Callable[[Sample], str],
    ):
        self.model, self.processor, self.journal, self.kind = model, processor, journal, kind
        self.samples, self.batches = list(samples), in_turns(samples, batch, kind)
        self.asked: dict[str, Asked] = {}  # by the name of the batch's first sample
        self.items: dict[str, Item] = {}

    def of(self, kind: str) -> Trials:
        """Trials on the samples of one kind alone; what is recorded is shared."""
        some = copy.copy(self)
        some.samples = [sample for sample in self.samples if self.kind(sample) == kind]
        some.batches = [batch for batch in self.batches if self.kind(batch[0]) == kind]
        return some

    def first(self, rounds: int) -> Trials:
        """Trials on the first rounds alone."""
        some = copy.copy(self)
        some.batches = [batch for batches in self.rounds[:rounds] for batch in batches]
        names = {sample.name for batch in some.batches for sample in batch}
        some.samples = [sample for sample in self.samples if sample.name in names]
        return some

    @property
    def rounds(self) -> list[list[list[Sample]]]:
        """The batches: one of every kind and task, then the next of every one, and so on."""
        rounds: list[list[list[Sample]]] = []
        seen: Counter = Counter()
        for batch in self.batches:
            group = self.kind(batch[0]), batch[0].task
            rounds += [[]] if seen[group] == len(rounds) else []
            rounds[seen[group]].append(batch)
            seen[group] += 1
        return rounds

    def depth(self, items: Sequence[Item]) -> int:
        """How many layers can be recorded, of half of them at most, if all batches were like this one."""
        config, size = self.model.config.get_text_config(), self.model.dtype.itemsize
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        tokens = len(items) * max(item.length for item in items) * len(self.batches)
        layer = tokens * size * (config.hidden_size + 2 * heads * width)
        return min(config.num_hidden_layers // 2, int(MEMORY // layer))

    def item(self, sample: Sample) -> Item:
        if sample.name not in self.items:
            self.items[sample.name] = item_of(self.model, self.processor, sample)
        return self.items[sample.name]

    def batch(self, batch: Sequence[Sample], method: Method | None) -> dict[str, Outcome]:
        """The outcomes of one batch, from the journal where they are there already."""
        key, names = name_of(method), [sample.name for sample in batch]
        if not self.journal.has(key, names):
            if names[0] not in self.asked:
                items = [self.item(sample) for sample in batch]
                try:
                    self.asked[names[0]] = Asked(self.model, self.processor, items, self.depth(items))
                except ValueError as error:
                    hint = "; --batch 1 asks them one by one" if len(items) > 1 else ""
                    raise ValueError(f"{error}{hint}") from None
            asked = self.asked[names[0]]
            found = asked.dense if method is None or key == DENSE else asked.trial(method)
            self.journal.append(
                {"setting": key, "sample": name, **asdict(outcome)} for name, outcome in zip(names, found, strict=True)
            )
        return {name: outcome_of(self.journal.answers[key, name]) for name in names}

    def run(self, method: Method | None) -> dict[str, Outcome]:
        """The outcomes of all samples."""
        return {name: outcome for batch in self.batches for name, outcome in self.batch(batch, method).items()}

    def run_all(
        self, methods: Callable[[str], Sequence[Method | None]], advance: Callable[[int], None]
    ) -> dict[str, dict[str, Outcome]]:
        """The outcomes of several methods, batch by batch, by their names: no batch is recorded longer than needed.

        methods: of a kind of sample.
        """
        found: dict[str, dict[str, Outcome]] = {}
        for batch in self.batches:
            for name, method in {name_of(method): method for method in methods(self.kind(batch[0]))}.items():
                found.setdefault(name, {}).update(self.batch(batch, method))
            self.asked.pop(batch[0].name, None)
            for sample in batch:
                self.items.pop(sample.name, None)
            advance(len(batch))
        return found


def in_turns(samples: Sequence[Sample], size: int, kind: Callable[[Sample], str]) -> list[list[Sample]]:
    """Batches of at most `size` samples of one kind and task: the first of each, then the second of each, and so on."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((kind(sample), sample.task), []).append(sample)
    longest = max(map(len, groups.values()), default=0)
    turns = (group[start : start + size] for start in range(0, longest, size) for group in groups.values())
    return [batch for batch in turns if batch]


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    return Outcome(**{field.name: record[field.name] for field in fields(Outcome)})


def loss(outcomes: Iterable[Outcome]) -> float:
    """How unfaithful: the mean of answers that changed (0 or 1) and of KL (at most 1), 0 to 1. Lower is better."""
    return fmean((float(not o.same) + min(o.kl, WORST)) / 2 for o in outcomes)


def share(outcomes: Outcomes, dense: Outcomes, what: str = "flops") -> float:
    """Cost as a share of the dense model's: "flops", "whole" or "visual"."""
    mine = sum(getattr(outcomes[name], what) for name in outcomes)
    return mine / sum(getattr(dense[name], what) for name in outcomes)


def scheduled_share(method: Method, items: Sequence[Item], config: Any, kind: str) -> float:
    """The same, of a method whose schedule says what it keeps, without running it: mean over the items.

    kind: "flops" or "visual". Raises NotImplementedError where the schedule does not say.
    """
    layers = config.get_text_config().num_hidden_layers
    mine = full = 0.0
    for length, total, system in {(item.length, item.visual, item.system) for item in items}:
        many = sum((item.length, item.visual, item.system) == (length, total, system) for item in items)
        visual = cost.visual_per_layer(layers, total, method.schedule(layers, total))
        if kind == "visual":
            mine, full = mine + many * cost.layer_average(visual), full + many * total
            continue
        text = length - total
        rows = {k: n for k, n in method.scored(visual, text - system, length).items() if visual[k]}
        mine += many * cost.prefill(config, [text + n for n in visual], scored=rows, images=0).total
        full += many * cost.prefill(config, [length] * layers, images=0).total
    return mine / full


def solve(
    dial: Callable[[float], Method], target: float, cost_of: Callable[[Method], float], steps: int = 16
) -> Method:
    """The most that a dial from 0 to 1 can be turned to without costing more than `target`.

    Raises ValueError if even 0 costs more.
    """
    low, high = 0.0, 1.0
    if cost_of(dial(high)) <= target:
        return dial(high)
    least = cost_of(dial(low))
    if least > target:
        raise ValueError(f"{dial(low).name} costs at least {least:.1%} of dense here, and {target:.1%} was asked for")
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if cost_of(dial(middle)) > target else (middle, high)
    return dial(low)


def rounded(value: float) -> float:
    """A share or a fraction with no more digits than matter, rounded down."""
    return int(value * 10_000) / 10_000
