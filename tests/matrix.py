"""What every method does on every family in every mode: the same as the masked reference, or an error with a remedy.

A mode is a function of a `Case`. It returns if what it ran was right, fails an assertion if not, and lets the error
pass that refuses it. With no method the same function runs on the model as it is: what that cannot do is no mode of it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import foveate
import tiny_families as families
from contracts import rule_of
from reference import rules
from reference.flash import flash
from reference.whole import Masked, masked
from tiny_families import Row

STEPS = 4
ATOL = 1e-4  # of the logits' standard deviation
METHODS: dict[str, Any] = {
    "fastv": foveate.FastV(layer=2, keep=0.5),
    "himap": foveate.HiMAP(layer1=1, keep1=0.5, layer2=3, keep2=0.25),
    "vtw": foveate.VTW(layer=3),
    "visipruner": foveate.VisiPruner(shallow=1, fire=0.97, influence=0.3, exit=0.97, exit_count=1),
    "random": foveate.Random(layer=2, keep=0.4, seed=3),
    "uniform": foveate.Uniform(layer=1, keep=0.3),
}
HEADS = {  # the families of the table, and their names
    "llava": "LLaVA-1.5",
    "llava-next": "LLaVA-NeXT",
    "llava-onevision": "LLaVA-OneVision",
    "video-llava": "Video-LLaVA",
    "qwen2-vl": "Qwen2-VL",
    "qwen2.5-vl": "Qwen2.5-VL",
    "qwen3-vl": "Qwen3-VL",
    "internvl": "InternVL",
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "gemma3": "Gemma 3",
    "paligemma": "PaliGemma",
    "mistral3": "Mistral 3",
    "glm4v": "GLM-4V",
    "mini": "mini",
}
FAMILIES = list(HEADS)
ONE, LONG = Row(("image",), 7, 2), Row(("image",), 12, 3)
RAGGED = (Row(("image", "image"), 4, 1), ONE, Row((), 5, 4))


QUANTISED = {"backend": "fp8"}  # the one that needs no other package


class Absent(Exception):
    """There is no such thing in this family."""


class Wrong(AssertionError):
    """An answer that is not the reference's."""


@dataclass(frozen=True)
class Drawn(rules.Rule):
    """`Random`, by its definition: the first tokens of a permutation that the seed and their number decide."""

    layer: int
    amount: float
    seed: int

    def keep(self, layer, before, prompt, alive):
        if layer != self.layer:
            return alive
        order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return sorted(alive[i] for i in order[: round(self.amount * len(alive))])


@dataclass
class Cuts(rules.Rule):
    """The edits of a rule, and cuts that somebody else has decided."""

    rule: rules.Rule
    cuts: dict[int, list[int]]

    def keep(self, layer, before, prompt, alive):
        return self.cuts.get(layer, alive)

    def edit(self, layer, attention, prompt):
        return self.rule.edit(layer, attention, prompt)


def generate(net: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    """Greedy unless `options` say otherwise, with the raw logits of every step."""
    defaults = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return net.generate(**inputs, **(defaults | options))


@dataclass(frozen=True)
class Case:
    """A family, and a method of `METHODS` or None."""

    family: str
    method: str | None

    def net(self, attention: str = "sdpa") -> Any:
        return families.model(self.family, attention)

    def batch(self, *rows: Row) -> dict[str, Tensor]:
        return families.batch(self.family, *rows)

    @property
    def pruner(self) -> Any:
        """The method; VisiPruner without its shallow stage, which is a mode of its own, where that is refused."""
        if self.method == "visipruner" and self.family == "paligemma":
            return dataclasses.replace(METHODS["visipruner"], stages=("middle", "deep"))
        return METHODS[self.method]

    def prune(self, net: Any) -> Any:
        return foveate.prune(net, self.pruner)

    @contextmanager
    def pruned(self, net: Any) -> Iterator[Any]:
        if self.method is None:
            yield None
        else:
            with self.prune(net) as pruned:
                yield pruned

    @property
    def rule(self) -> rules.Rule:
        if self.method is None:
            return rules.Rule()
        method = self.pruner
        return Drawn(method.layer, method.keep, method.seed) if method.name == "random" else rule_of(method)

    @contextmanager
    def masked(self, row: Row, rule: rules.Rule | None = None, net: Any = None) -> Iterator[tuple[Any, Masked]]:
        """The reference: an eager model that drops nothing, and what it hides."""
        net, tokens = net or families.model(self.family, "eager"), families.tokens(self.family, row)
        prompt = rules.Prompt(len(tokens.ids), tuple(tokens.visual))
        with masked(net, self.rule if rule is None else rule, prompt) as attention:
            yield net, attention
        if attention.rule.margin < 1e-5:
            raise RuntimeError(f"a close call in {self} for {row}: choose another seed")


@dataclass(frozen=True)
class Wanted:
    tokens: list[int]
    logits: list[Tensor]
    alive: list[list[int]]


@cache
def wanted(case: Case, row: Row) -> Wanted:
    """Greedy decoding of a row alone."""
    with case.masked(row) as (net, attention):
        out = generate(net, case.batch(row))
    return Wanted(out.sequences[0, -STEPS:].tolist(), [logits[0] for logits in out.logits], attention.alive)


def close(ours: Tensor, theirs: Tensor, atol: float = ATOL) -> None:
    if not ours.is_floating_point():
        expect(torch.equal(ours, theirs), f"{ours.tolist()} instead of {theirs.tolist()}")
        return
    difference = float((ours - theirs).abs().max() / theirs.float().std())
    expect(difference < atol, f"differs by {difference:.1e}")


def expect(right: bool, what: str) -> None:
    if not right:
        raise Wrong(what)


def check(case: Case, out: Any, *rows: Row) -> None:
    """Every row of a greedy `generate` is what the reference says of the row alone."""
    for b, row in enumerate(rows):
        want = wanted(case, row)
        said = out.sequences[b, -STEPS:].tolist()
        expect(said == want.tokens, f"row {b} said {said} instead of {want.tokens}")
        for ours, theirs in zip(out.logits, want.logits, strict=True):
            close(ours[b], theirs)


def check_trace(case: Case, trace: Any, *rows: Row) -> None:
    """The trace tells what the reference hid."""
    width = max(len(families.tokens(case.family, row).ids) for row in rows)
    for b, row in enumerate(rows):
        tokens = families.tokens(case.family, row)
        start, text = width - len(tokens.ids), len(tokens.ids) - len(tokens.visual)
        expect(trace.visual[b].tolist() == [start + v for v in tokens.visual], f"visual tokens of row {b}")
        for layer, alive in enumerate(wanted(case, row).alive):
            expect(trace.tokens[layer][b] == text + len(alive), f"row {b}, layer {layer}: tokens")
        for stage in trace.stages:
            alive = wanted(case, row).alive[stage.layer]
            expect(stage.kept[b].tolist() == [start + v for v in alive], f"row {b}, layer {stage.layer}: kept")


def greedy(case: Case, *rows: Row, attention: str = "sdpa", net: Any = None, **options: Any) -> None:
    """A greedy `generate` with these options gives what the reference gives without them."""
    net = net or case.net(attention)
    with case.pruned(net) as pruned:
        out = generate(net, case.batch(*rows), **options)
    check(case, out, *rows)
    if pruned is not None:
        check_trace(case, pruned.trace, *rows)


def alike(case: Case, script: Callable[[Any, dict[str, Tensor]], list[Tensor]], atol: float = ATOL) -> None:
    """A script gives the same tensors on the pruned model and on the reference."""
    with case.pruned(case.net()):
        ours = script(case.net(), case.batch(ONE))
    with case.masked(ONE) as (net, _):
        theirs = script(net, case.batch(ONE))
    for one, other in zip(ours, theirs, strict=True):
        close(one, other, atol)


# ---- the modes, in the order and under the names of the table

MODES: dict[str, Callable[[Case], None]] = {}


def mode(name: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def enter(function: Callable[[Case], None]) -> Callable[[Case], None]:
        MODES[name] = function
        return function

    return enter


@mode("one picture")
def one_picture(case):
    greedy(case, ONE)


@mode("eager attention")
def eager(case):
    greedy(case, ONE, attention="eager")


@mode("flash attention")
def flash_attention(case):
    with flash(case.net()):
        greedy(case, ONE)
        greedy(case, *RAGGED)


@mode("batch with left padding")
def padded(case):
    greedy(case, ONE, LONG)


@mode("batch of 2, 1 and 0 pictures")
def ragged(case):
    greedy(case, *RAGGED)
    greedy(case, *RAGGED, attention="eager")


@mode("pictures of other sizes, crops")
def wide(case):
    if families.FAMILIES[case.family].wide is None:
        raise Absent
    greedy(case, Row(("wide", "image"), 6, 5), ONE)


@mode("video")
def video(case):
    if families.FAMILIES[case.family].video is None:
        raise Absent
    greedy(case, Row(("video",), 6, 6), Row(("video",), 9, 7))


@mode("no picture at all")
def text_only(case):
    rows = (Row((), 6, 8), Row((), 9, 9))
    greedy(case, *rows)


@mode("`inputs_embeds` with `visual=`")
def embeddings(case):
    def script(net, inputs):
        ids, net.base_model.rope_deltas = inputs.pop("input_ids"), None  # Qwen's memory of the last prompt
        return [net(**inputs, inputs_embeds=net.get_input_embeddings()(ids)).logits[:, -1]]

    visual = torch.tensor([[kind > 0 for kind in families.tokens(case.family, ONE).kinds]])
    if case.method is None:
        ours = script(case.net(), case.batch(ONE))
    else:
        with foveate.prune(case.net(), case.pruner, visual=visual):
            ours = script(case.net(), case.batch(ONE))
    with case.masked(ONE) as (net, _):
        close(ours[0], script(net, case.batch(ONE))[0])


@mode("beam search")
def beams(case):
    def script(net, inputs):
        out = generate(net, inputs, num_beams=3, output_scores=True)
        return [out.sequences, torch.stack(out.scores)]

    alike(case, script)


@mode("sampling with a seed")
def sampling(case):
    def script(net, inputs):
        torch.manual_seed(5)
        out = generate(net, inputs, do_sample=True, top_k=0)
        return [out.sequences, torch.stack(out.logits)]

    alike(case, script)


@mode("several answers to a prompt")
def several(case):
    def script(net, inputs):
        torch.manual_seed(6)
        out = generate(net, inputs, do_sample=True, top_k=0, num_return_sequences=3)
        return [out.sequences, torch.stack(out.logits)]

    alike(case, script)


@mode("second turn on the cache")
def second_turn(case):
    def script(net, inputs):
        first = generate(net, inputs)
        ids = torch.cat([first.sequences, torch.tensor([[31, 32, 33]])], dim=1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for kinds in ("mm_token_type_ids", "token_type_ids"):
            if kinds in inputs:
                new = ids.shape[1] - inputs[kinds].shape[1]
                more[kinds] = torch.nn.functional.pad(inputs[kinds], (0, new))
        second = generate(net, more, past_key_values=first.past_key_values)
        return [second.sequences, torch.stack(second.logits)]

    alike(case, script)


@mode("assisted decoding: prompt lookup")
def lookup(case):
    greedy(case, ONE, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)


@mode("assisted decoding: an assistant model")
def assistant(case):
    greedy(case, ONE, assistant_model=families.model(case.family, "eager"))


@mode("`generate(use_cache=False)`")
def without_cache(case):
    greedy(case, *RAGGED, use_cache=False)


@mode("`model(..., use_cache=False)`")
def forward(case):
    with case.pruned(case.net()):
        logits = case.net()(**case.batch(*RAGGED), use_cache=False).logits
    for b, row in enumerate(RAGGED):
        close(logits[b, -1], wanted(case, row).logits[0])


@mode("static cache")
def static(case):
    greedy(case, *RAGGED, cache_implementation="static")


@mode("quantised cache")
def quantised(case):
    """What the reference reads of the past was stored as the cache stores it: the survivors, then token by token."""
    options = {"cache_implementation": "quantized", "cache_config": QUANTISED}
    with case.pruned(case.net()):
        out = generate(case.net(), case.batch(ONE), **options)
    with case.masked(ONE) as (net, attention):
        attention.storage = transformers.QuantizedCache(config=net.config, **QUANTISED).layers[0]
        theirs = generate(net, case.batch(ONE))
    close(out.sequences, theirs.sequences)
    for one, other in zip(out.logits, theirs.logits, strict=True):
        close(one, other, 2e-2)  # float noise rounds a number the other way now and then; not stored so: 0.1


@mode("VisiPruner's shallow stage")
def shallow(case):
    with foveate.prune(case.net(), METHODS["visipruner"]) if case.method else contextlib.nullcontext():
        pass
    greedy(case, *RAGGED)


@mode("offloaded cache")
def offloaded(case):
    greedy(case, *RAGGED, cache_implementation="offloaded")


@mode("prefill in chunks")
def chunks(case):
    greedy(case, ONE, prefill_chunk_size=10)


@mode("continuous batching")
def continuous(case):
    if case.method is None:
        return  # text only, and threads of its own: not run here
    with case.pruned(case.net()):
        case.net().generate_batch([[1, 5, 6]])


@mode("`output_hidden_states`, `output_attentions`")
def outputs(case):
    with case.pruned(case.net("eager")):
        out = case.net("eager")(**case.batch(ONE), output_hidden_states=True, output_attentions=True)
    with case.masked(ONE) as (net, _):
        theirs = net(**case.batch(ONE), output_hidden_states=True)
    want, tokens = wanted(case, ONE), families.tokens(case.family, ONE)
    text = len(tokens.ids) - len(tokens.visual)
    expect([a.shape[-1] for a in out.attentions] == [text + len(alive) for alive in want.alive], "attentions")
    for ours, full in zip(out.hidden_states, theirs.hidden_states, strict=True):
        close(ours[0, -1], full[0, -1])


def in_half(case: Case, dtype: torch.dtype, atol: float) -> None:
    """With the tokens that the half-precision run itself kept: its rounding may tip a decision."""

    def script(net, inputs):
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        first = net(**inputs, use_cache=True)
        return [first.logits[:, -1].float()]

    net = copy.deepcopy(case.net()).to(dtype)
    with case.pruned(net) as pruned:
        ours = script(net, case.batch(ONE))
    cuts = {} if pruned is None else {stage.layer: stage.kept[0].tolist() for stage in pruned.trace.stages}
    full = copy.deepcopy(families.model(case.family, "eager")).to(dtype)
    with case.masked(ONE, Cuts(case.rule, cuts), full):
        close(ours[0], script(full, case.batch(ONE))[0], atol)


@mode("bfloat16")
def bfloat16(case):
    in_half(case, torch.bfloat16, 0.3)


@mode("float16")
def float16(case):
    in_half(case, torch.float16, 0.05)


@mode("layers offloaded to disk (accelerate)")
def dispatched(case):
    import accelerate

    net = families.build(case.family, "sdpa")
    layers = {id(p) for layer in net.get_decoder().layers[::2] for p in layer.parameters()}
    places = {name: "disk" if id(p) in layers else "cpu" for name, p in net.named_parameters(remove_duplicate=False)}
    places |= {name: "cpu" for name, _ in net.named_buffers()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every layer on disk
        greedy(case, *RAGGED, net=accelerate.dispatch_model(net, places, offload_dir=folder))


@mode("gradients")
def gradients(case):
    def script(net, inputs):
        with torch.enable_grad():
            net.zero_grad()
            net(**inputs).logits[0, -1].logsumexp(-1).backward()
        attention = net.get_decoder().layers[-1].self_attn
        found = [attention.q_proj.weight.grad.clone(), net.get_input_embeddings().weight.grad.clone()]
        net.zero_grad()
        return found

    alike(case, script, atol=5e-3)  # sums over many small terms


@mode("gradient checkpointing")
def checkpointing(case):
    net = copy.deepcopy(case.net()).train()
    net.gradient_checkpointing_enable()
    with case.pruned(net), torch.enable_grad():
        net(**case.batch(ONE)).logits.sum().backward()


@mode("`labels`")
def labels(case):
    inputs = case.batch(ONE)
    with case.pruned(case.net()):
        case.net()(**inputs, labels=inputs["input_ids"])


@mode("padding on the right")
def right_padding(case):
    inputs, width = case.batch(ONE), case.batch(ONE)["input_ids"].shape[1]
    padded = {
        k: torch.nn.functional.pad(v, (0, 3)) if v.ndim == 2 and v.shape[1] == width else v for k, v in inputs.items()
    }
    with case.pruned(case.net()):
        case.net()(**padded)


@mode("a prompt that ends in its picture")
def picture_last(case):
    inputs, end = case.batch(ONE), families.tokens(case.family, ONE).visual[-1] + 1
    width = inputs["input_ids"].shape[1]
    short = {k: v[:, :end] if v.ndim == 2 and v.shape[1] == width else v for k, v in inputs.items()}
    with case.pruned(case.net()):
        generate(case.net(), short)


@mode("compiled as a whole, before entering")
def compiled_before(case):
    net = compiled_copy(case)
    try:
        net(**case.batch(ONE))
        greedy(case, ONE, net=net)
        with torch.no_grad():
            close(net(**case.batch(ONE)).logits[0, -1], wanted(Case(case.family, None), ONE).logits[0])
    finally:
        torch._dynamo.reset()


@mode("compiled as a whole, inside")
def compiled_inside(case):
    net = copy.deepcopy(case.net())
    try:
        with case.pruned(net):
            net(**case.batch(ONE))
            net.compile(backend="eager")
            out = generate(net, case.batch(ONE))
        check(case, out, ONE)
    finally:
        torch._dynamo.reset()


def compiled_copy(case: Case) -> Any:
    net = copy.deepcopy(case.net())
    net.compile(backend="eager")
    return net


@mode("compiled decoding, static cache")
def compiled_decoding(case):
    options = transformers.CompileConfig(backend="eager", fullgraph=True, mode=None)
    options._compile_all_devices = True  # transformers compiles on accelerators only unless told so
    net, dense = copy.deepcopy(case.net()), Case(case.family, None)
    try:
        for now in (dense, case, dense):  # no graph of one may serve the other
            greedy(now, ONE, LONG, net=net, cache_implementation="static", compile_config=options)
    finally:
        torch._dynamo.reset()


@mode("pruning again after leaving")
def again(case):
    if case.method is None:
        return
    for method in (case.method, "uniform", case.method):
        greedy(Case(case.family, method), ONE)
        check(Case(case.family, None), generate(case.net(), case.batch(ONE)), ONE)


@mode("pruning inside pruning")
def nested(case):
    with case.pruned(case.net()):
        if case.method is not None:
            case.prune(case.net())


@mode("two threads")
def threads(case):
    forms = ((ONE,), RAGGED, (LONG, ONE), (Row((), 6, 8),))
    with case.pruned(case.net()), ThreadPoolExecutor(2) as pool:
        outs = list(pool.map(lambda rows: generate(case.net(), case.batch(*rows)), forms, timeout=120))
    for rows, out in zip(forms, outs, strict=True):
        check(case, out, *rows)


@mode("deep copy while pruned")
def deep_copy(case):
    with case.pruned(case.net()):
        copy.deepcopy(case.net())


@mode("pickling while pruned")
def pickled(case):
    net = families.build(case.family, "sdpa")
    with case.pruned(net):
        pickle.dumps(net)


@mode("deep copy after leaving")
def copied_after(case):
    with case.pruned(case.net()):
        generate(case.net(), case.batch(ONE))
    greedy(case, ONE, net=copy.deepcopy(case.net()))


@mode("pickling after leaving")
def pickled_after(case):
    net = families.build(case.family, "sdpa")  # many cannot be pickled once they have run
    with case.pruned(net):
        pass
    greedy(case, ONE, net=pickle.loads(pickle.dumps(net)))


# ---- outcomes


@cache
@torch.no_grad()
def native(family: str, name: str) -> str:
    """ "right" if the model as it is can do this and it changes nothing, else why not."""
    try:
        MODES[name](Case(family, None))
    except Absent:
        return "absent"
    except Wrong:
        return "native: gives another answer"
    except Exception as error:
        return f"native: {type(error).__name__}: {error}".splitlines()[0]
    return "right"


@torch.no_grad()
def outcome(family: str, name: str, method: str) -> str:
    """What a cell comes to: "right", "refused: why", "absent", or "native: why" (not without pruning either).

    Raises:
        Wrong: the answer was a wrong one. Any other error: one that does not name a remedy.
    """
    without = native(family, name)
    if without not in ("right", "native: gives another answer"):
        return without
    try:
        MODES[name](Case(family, method))
    except (ValueError, NotImplementedError) as error:
        if "foveate" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise
        return f"refused: {error}"
    except Wrong:
        if without == "right":
            raise
        return without
    return "right"


# ---- the table

TABLE = Path(__file__).with_name("matrix.json")
PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
SLOW = tuple(name for name in MODES if name.startswith("compiled"))  # many seconds each, so with one method only
RUN_WITH = dict.fromkeys(SLOW, ("himap",)) | {"VisiPruner's shallow stage": ("visipruner",)}
SIGNS = {"right": "✓", "absent": ""}
INTRODUCTION = """# Every family, every method, every mode

Made by the tests: `make matrix` runs all of it on tiny random models and writes this page. CI runs all of it again, and
fails where a cell is not what is printed here, on the newest transformers and on the oldest supported (there the
rows on compiled models, which take long, on LLaVA-1.5 and Qwen2.5-VL). What does not hang on the family is tested once:
`pipeline("image-text-to-text")`, adapters, an error or Ctrl-C in the middle of a prompt.

**✓** FastV, HiMAP, VTW, VisiPruner, Random and Uniform give what the *masked reference* gives: a run of the whole model
at full length in which nothing is dropped and nobody looks at what a method lets go. Compared are the logits of every
step (float32: to 1e-4 of their standard deviation), the tokens, and in most rows what was kept in every layer. A
number is a note: an error that says what to do instead, or a reason why the model itself does not do it, without
pruning either. An empty cell: the family has no such thing. The rows on compiled models were run with HiMAP; flash
attention is written out ([flash.py](../tests/reference/flash.py)), so that what its kernel is given is tested anywhere.

Models whose prompt holds no visual tokens (Mllama reads images by cross-attention) and encoder-decoders are refused by
`foveate.prune` itself, and Gemma 3 beyond its sliding window at the prompt. [How to add a family](families.md).
"""


def outcomes(name: str, family: str) -> str | dict[str, str]:
    """Of all methods that the mode is run with; one text if they are alike."""
    found = {method: outcome(family, name, method) for method in RUN_WITH.get(name, METHODS)}
    texts = set(found.values())
    return texts.pop() if len(texts) == 1 else found


def page(table: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown."""
    notes: list[str] = []

    def sign(text: str) -> str:
        if text in SIGNS:
            return SIGNS[text]
        if text not in notes:
            notes.append(text)
        return str(notes.index(text) + 1)

    def cell(found: Any) -> str:
        if isinstance(found, str):
            return sign(found)
        return "; ".join(f"{method} {sign(text)}" for method, text in found.items())

    rows = [["", *HEADS.values()]]
    rows += [[name, *(cell(table[name][family]) for family in FAMILIES)] for name in MODES]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    kinds = {"refused": "Refused", "native": "The model itself"}
    told = [f"{n}. {kinds[kind]}: {why}" for n, (kind, why) in enumerate((t.split(": ", 1) for t in notes), 1)]
    return "\n".join([INTRODUCTION, *lines, "", "Notes:", "", *told]) + "\n"


def main(*words: str) -> None:
    """Run everything, or the families among `words` and the modes with one of the others in their names."""
    families = [word for word in words if word in FAMILIES] or FAMILIES
    parts = [word for word in words if word not in FAMILIES]
    table = json.loads(TABLE.read_text()) if words else {}
    for name in MODES:
        if parts and not any(part in name for part in parts):
            continue
        start = time.perf_counter()
        table[name] = table.get(name, {}) | {family: outcomes(name, family) for family in families}
        print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)
    table = {name: {family: table[name][family] for family in FAMILIES} for name in MODES}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(table))


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    main(*sys.argv[1:])
