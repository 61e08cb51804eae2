"""What holds for any prompts, schedules and kept sets, on tiny models of several families.

`make test` tries a few dozen of each; `make properties` 5,000 in all.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import foveate
import tiny_families
from contracts import rule_of
from foveate.methods import Method
from matrix import close, generate
from reference import rules
from reference.whole import masked
from tiny_families import LAYERS, Row

FAMILIES = ("llava", "qwen2.5-vl", "qwen3-vl", "internvl", "gemma3", "paligemma", "mistral3")
families = st.sampled_from(FAMILIES)
rows = st.builds(
    Row,
    pictures=st.lists(st.just("image"), max_size=2).map(tuple),
    words=st.integers(2, 9),
    seed=st.integers(0, 5),  # few, since what the reference made of a row is kept
)
batches = st.lists(rows, min_size=1, max_size=4)
keeps = st.floats(0, 1) | st.integers(0, 40)
layers = st.integers(1, LAYERS - 1)


@dataclass(frozen=True)
class Scripted(Method):
    """Keeps visual tokens by the toss of a coin, at several layers; a row's tosses do not hang on the batch."""

    plan: tuple[tuple[int, float, int], ...]  # (layer, how likely a token is to stay, seed)

    name: ClassVar[str] = "scripted"

    def cuts(self, layers):
        return sorted({layer for layer, _, _ in self.plan})

    def decide(self, view):
        keep = torch.zeros_like(view.visual)
        for layer, likely, seed in self.plan:
            if layer == view.layer:
                for row, visual in zip(keep, view.visual, strict=True):
                    tosses = torch.Generator().manual_seed(seed)
                    row[visual] = torch.rand(int(visual.sum()), generator=tosses) < likely
        return keep


plans = st.lists(st.tuples(layers, st.floats(0, 1), st.integers(0, 1000)), min_size=1, max_size=3)
scripts = plans.map(lambda plan: Scripted(tuple({layer: (layer, p, seed) for layer, p, seed in plan}.values())))


def methods() -> st.SearchStrategy[Method]:
    later = layers.flatmap(lambda first: st.tuples(st.just(first), st.integers(first + 1, LAYERS)))
    pairs = later.filter(lambda pair: pair[1] < LAYERS)
    return st.one_of(
        st.builds(foveate.FastV, layer=layers, keep=keeps, rows=st.sampled_from(("last", "all"))),
        st.builds(
            lambda pair, keep1, keep2, deep: foveate.HiMAP(pair[0], keep1, pair[1], keep2, deep),
            pairs,
            keeps,
            keeps,
            st.sampled_from(("receives", "sends")),
        ),
        st.builds(foveate.VTW, layer=layers),
        st.builds(foveate.Uniform, layer=layers, keep=keeps),
        st.builds(
            foveate.VisiPruner,
            stages=st.sampled_from((("middle",), ("deep",), ("middle", "deep"))),
            shallow=st.integers(0, 2),
            fire=st.floats(0.5, 1),
            influence=st.floats(0, 2),
            exit=st.floats(0.5, 1),
            exit_count=st.integers(1, 2),
            consecutive=st.booleans(),
        ),
    )


def prompt_of(family: str, row: Row) -> rules.Prompt:
    tokens = tiny_families.tokens(family, row)
    return rules.Prompt(len(tokens.ids), tuple(tokens.visual))


@torch.no_grad()
def run(family: str, method: Method, *batch: Row):
    net = tiny_families.model(family, "sdpa")
    with foveate.prune(net, method) as pruned:
        return generate(net, tiny_families.batch(family, *batch), max_new_tokens=2), pruned.trace


@torch.no_grad()
def full(family: str, row: Row, rule: rules.Rule):
    """Two steps of the reference, and what it hid."""
    net = tiny_families.model(family, "eager")
    with masked(net, rule, prompt_of(family, row)) as attention:
        return generate(net, tiny_families.batch(family, row), max_new_tokens=2), attention


def check_trace(family: str, trace, batch: list[Row]) -> None:
    """Kept sets are sorted, unique, of the visual tokens, and shrink; the tokens of all layers add up."""
    width = max(prompt_of(family, row).length for row in batch)
    for b, row in enumerate(batch):
        prompt = prompt_of(family, row)
        alive = [width - prompt.length + v for v in prompt.visual]
        assert trace.visual[b].tolist() == alive and trace.prompt[b] == prompt.length
        starts = {stage.layer: stage for stage in trace.stages}
        for layer in range(LAYERS):
            if layer in starts:
                kept = starts[layer].kept[b].tolist()
                assert kept == sorted(set(kept)) and set(kept) <= set(alive)
                alive = kept
            assert trace.tokens[layer][b] == prompt.length - len(prompt.visual) + len(alive)
    assert trace.flops > 0
    if not trace.stages:
        assert [sum(counts) for counts in trace.tokens] == [sum(trace.prompt)] * LAYERS


@given(families, scripts, batches)
def test_dropped_equals_masked_whatever_is_kept(family, script, batch):
    """And a row alone equals that row in the batch: the reference is of the row alone."""
    out, trace = run(family, script, *batch)
    check_trace(family, trace, batch)
    width = max(prompt_of(family, row).length for row in batch)
    for b, row in enumerate(batch):
        start = width - prompt_of(family, row).length
        cuts = {stage.layer: [v - start for v in stage.kept[b].tolist()] for stage in trace.stages}
        want, _ = full(family, row, rules.Given(cuts))
        close(out.logits[0][b], want.logits[0][0])
        if out.sequences[b, -2] == want.sequences[0, -2]:
            close(out.logits[1][b], want.logits[1][0])
        alone, _ = run(family, script, row)
        close(out.logits[0][b], alone.logits[0][0])


@given(families, methods(), batches)
def test_every_method_keeps_what_its_rule_says_whatever_its_numbers(family, method, batch):
    wanted = [full(family, row, rule_of(method)) for row in batch]
    assume(all(attention.rule.margin > 1e-4 for _, attention in wanted))
    out, trace = run(family, method, *batch)
    check_trace(family, trace, batch)
    for b, (row, (want, attention)) in enumerate(zip(batch, wanted, strict=True)):
        close(out.logits[0][b], want.logits[0][0])
        text = prompt_of(family, row).length - len(prompt_of(family, row).visual)
        assert [counts[b] for counts in trace.tokens] == [text + len(alive) for alive in attention.alive]


@given(families, rows, layers, st.integers(0, 40), st.integers(0, 40))
def test_less_kept_costs_less(family, row, layer, one, other):
    total = len(prompt_of(family, row).visual)
    low, high = sorted(min(count, total) for count in (one, other))
    (_, fewer), (_, more) = (run(family, foveate.Uniform(layer, keep=count), row) for count in (low, high))
    assert fewer.flops < more.flops if low < high else fewer.flops == more.flops
    assert more.flops < more.dense_flops if high < total else more.flops == more.dense_flops
