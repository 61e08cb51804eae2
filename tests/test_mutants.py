"""A test of the tests: planted faults, each of which has to be caught by a contract check of its own.

Every check passes on the code as it is; with the fault in place it fails.
"""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
import matrix
import tiny_families
from foveate.pruning import compiled, cut, edits, engine, families, guard, tap
from foveate.pruning.engine import Pruned
from foveate.pruning.layout import Layout
from foveate.pruning.stages import Stage
from matrix import Case
from test_nothing_left_behind import unchanged


@dataclass(frozen=True)
class Mutant:
    """How the fault is planted, and the check that catches it."""

    plant: Callable[[pytest.MonkeyPatch], None]
    check: Callable[[], None]


def cell(name: str, family: str = "llava", method: str = "himap") -> Callable[[], None]:
    """A cell of the matrix."""
    return lambda: matrix.MODES[name](Case(family, method))


# ---- checks that are no cells


def a_copy() -> tuple:
    """A model of its own, for faults that leave something on it."""
    net = copy.deepcopy(tiny_families.model("llava", "sdpa"))
    return net, tiny_families.batch("llava", matrix.ONE)


def nothing_left_after_an_exception() -> None:
    net, inputs = a_copy()
    with unchanged(net, inputs), pytest.raises(ZeroDivisionError), foveate.prune(net, matrix.METHODS["himap"]):
        matrix.generate(net, inputs)
        _ = 1 / 0


def an_interrupted_call_lets_other_threads_go_on() -> None:
    net, inputs = a_copy()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    done: list[object] = []
    with foveate.prune(net, matrix.METHODS["himap"]) as pruned:
        hook = net.get_decoder().layers[2].mlp.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            net(**inputs)
        hook.remove()
        other = threading.Thread(target=lambda: done.append(net(**inputs)), daemon=True)
        other.start()
        other.join(timeout=5)
        reading = pruned._runs.current.reading
        pruned._end()  # so that the fault does not hold up the rest of the tests
        other.join(timeout=20)
    assert done and not reading


def the_trace_is_of_this_prompt() -> None:
    net, _ = a_copy()
    with foveate.prune(net, matrix.METHODS["himap"]) as pruned:
        for row in (matrix.ONE, matrix.LONG):
            net(**tiny_families.batch("llava", row))
            matrix.check_trace(Case("llava", "himap"), pruned.trace, row)


def features_that_are_no_numbers_are_refused() -> None:
    net, inputs = a_copy()
    inputs["pixel_values"].view(-1)[0] = float("nan")
    with foveate.prune(net, matrix.METHODS["vtw"]), pytest.raises(ValueError, match="NaN"):
        net(**inputs)


def a_prompt_beyond_the_window_is_refused() -> None:
    config = tiny_families.deeper(tiny_families.gemma3(window=16))
    net = tiny_families.T.AutoModelForImageTextToText.from_config(config)
    with foveate.prune(net, matrix.METHODS["vtw"]), pytest.raises(NotImplementedError, match="window"):
        net(**tiny_families.batch("gemma3", matrix.ONE))


# ---- faults


def renumbered(patch: pytest.MonkeyPatch) -> None:
    """Survivors get the rope of their new places."""

    def take(x, index, dim):
        wrong = torch.arange(index.shape[1]).expand_as(index) if dim == -2 else index
        return cut.take(x, wrong, dim)

    patch.setattr(engine, "take", take)


def filler_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "pack", lambda keep, counts=None: (cut.pack(keep, counts)[0], None))


def filler_seen_later(patch: pytest.MonkeyPatch) -> None:
    """The prompt's own masks are right; the tokens that follow it look at filler."""
    patch.setattr(Stage, "real", lambda self, padding, length, new: None)


def length_of_the_first_layer(patch: pytest.MonkeyPatch) -> None:
    """While decoding, the mask is the one that layer 0 would need, cut to fit."""

    def later(self, forward, stage, layer, hidden, cache):
        real = torch.ones(len(hidden), cache.get_seq_length(0) + 1, dtype=torch.bool)
        real = real if forward.padding is None else forward.padding[:, : real.shape[1]]
        real = real[:, : cache.get_seq_length(layer) + 1]
        return cut.causal_mask(self.config, self.kinds[layer], hidden, real, cache, layer)

    patch.setattr(Pruned, "_later_mask", later)


def hooks_left(patch: pytest.MonkeyPatch) -> None:
    leave = Pruned.__exit__

    def only_if_all_is_well(self, kind, error, tb):
        if error is None:
            leave(self, kind, error, tb)

    patch.setattr(Pruned, "__exit__", only_if_all_is_well)


def tap_left(patch: pytest.MonkeyPatch) -> None:
    """The tapped layers keep the config that names the tap."""
    patch.setattr(tap.Tap, "close", lambda self: None)


def graphs_kept(patch: pytest.MonkeyPatch) -> None:
    """And nothing else about the model tells a graph that it is another's: its forward is not shadowed either."""
    patch.setattr(compiled, "forget_graphs", lambda *_: None)
    patch.setattr(engine, "shadow", lambda owner, name, value: lambda: None)


def first_row_decides(patch: pytest.MonkeyPatch) -> None:
    """What sample 0 keeps is kept in all."""
    take = Layout.take
    patch.setattr(Layout, "take", lambda self, index, valid: take(self, index[:1].expand_as(index), valid))

    def pack(keep, counts=None):
        index, valid = cut.pack(keep, counts)
        return index[:1].expand_as(index), valid

    patch.setattr(engine, "pack", pack)


def one_layer_late(patch: pytest.MonkeyPatch) -> None:
    cuts = foveate.HiMAP.cuts
    patch.setattr(foveate.HiMAP, "cuts", lambda self, layers: tuple(layer + 1 for layer in cuts(self, layers)))
    patch.setattr(foveate.HiMAP, "start", lambda self: lambda view: self.decide(replace(view, layer=view.layer - 1)))


def answer_taken_for_question(patch: pytest.MonkeyPatch) -> None:
    """Whatever is read together with a prompt counts as the prompt."""
    patch.setattr(engine.Pruned, "_new_prompt", longer(engine.Pruned._new_prompt))


def longer(new_prompt):
    def wrong(self, visual, padding, cache, length, sound):
        return new_prompt(self, visual, padding, cache, visual.shape[1], sound)

    return wrong


def deepstack_unadapted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(families, "adapt", lambda decoder, stage: lambda: None)


def lock_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "always_ending", lambda forward, end: forward)


def old_trace(patch: pytest.MonkeyPatch) -> None:
    made: list = []

    def first(*args):
        made.append(engine_trace(*args))
        return made[0]

    engine_trace = engine.Trace
    patch.setattr(engine, "Trace", first)


def any_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "all_finite", lambda embeds, like: like.new_ones(()))


def any_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(families, "check_prompt", lambda config, length: None)


def drafts_are_pictures(patch: pytest.MonkeyPatch) -> None:
    """The guard does not say how long the prompt is."""
    checked = guard.checked_generate

    def forgetful(model, generate, runs, end):
        class Nowhere:
            current = type("Run", (), {"prompt": None})()

        return checked(model, generate, Nowhere, end)

    patch.setattr(guard, "checked_generate", forgetful)


def edits_everywhere(patch: pytest.MonkeyPatch) -> None:
    """VisiPruner's shallow stage edits the answer's rows as well."""
    followed = edits.Edit.followed

    def wrong(self, later):
        edit = followed(self, later)
        if later:
            edit.rows[:, -later:] = True
        return edit

    patch.setattr(edits.Edit, "followed", wrong)


def flash_reads_as_causal(patch: pytest.MonkeyPatch) -> None:
    """Without a mask the rows of every prompt are read as if it had been read from left to right."""
    patch.setattr(tap, "both_ways", lambda mask, query: mask)


MUTANTS = {
    "wrong rope": Mutant(renumbered, cell("one picture")),
    "wrong rope, three axes": Mutant(renumbered, cell("one picture", "qwen2.5-vl")),
    "filler not masked": Mutant(filler_seen, cell("batch of 2, 1 and 0 pictures")),
    "filler not masked in decode": Mutant(filler_seen_later, cell("batch of 2, 1 and 0 pictures")),
    "mask of layer 0's length in decode": Mutant(length_of_the_first_layer, cell("batch of 2, 1 and 0 pictures")),
    "hook left after an exception": Mutant(hooks_left, nothing_left_after_an_exception),
    "tap left on the config": Mutant(tap_left, nothing_left_after_an_exception),
    "stale compiled graph": Mutant(graphs_kept, cell("compiled decoding, static cache")),
    "sample 0's kept set used for all": Mutant(first_row_decides, cell("batch with left padding")),
    "cut one layer late": Mutant(one_layer_late, cell("one picture")),
    "answer taken for the question": Mutant(answer_taken_for_question, cell("`generate(use_cache=False)`")),
    "draft taken for the question": Mutant(drafts_are_pictures, cell("assisted decoding: an assistant model")),
    "edits reach the answer": Mutant(edits_everywhere, cell("`generate(use_cache=False)`", method="visipruner")),
    "DeepStack at the old places": Mutant(deepstack_unadapted, cell("one picture", "qwen3-vl")),
    "lock kept after Ctrl-C": Mutant(lock_kept, an_interrupted_call_lets_other_threads_go_on),
    "trace of an earlier prompt": Mutant(old_trace, the_trace_is_of_this_prompt),
    "flash attention read as causal": Mutant(flash_reads_as_causal, cell("flash attention", "paligemma")),
    "NaN let through": Mutant(any_number, features_that_are_no_numbers_are_refused),
    "window counts survivors": Mutant(any_length, a_prompt_beyond_the_window_is_refused),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _registries_stay():
    """A fault may leave a tap's name behind; the tests that follow begin without it."""
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        assert not registry._local_mapping
    yield
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        registry._local_mapping.clear()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name, monkeypatch):
    mutant = MUTANTS[name]
    mutant.check()
    mutant.plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError, ValueError, pytest.fail.Exception)):
        mutant.check()
