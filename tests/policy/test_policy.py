"""Policy files: what is saved comes back, another model is refused, and so is every file that is not a whole policy."""

import copy
import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
import tiny
from foveate.policy import Cut, Dense, Entry, Figure, Guard, Measured, Model, Policy, Rule, Schedule
from foveate.policy.encoding import decoded, encoded
from foveate.policy.guard import Guarded
from foveate.policy.policy import FILE, as_json, config_hash, from_json, signs_of
from foveate.pruning.engine import Pruned

METHODS = [
    foveate.FastV(2, 0.5),
    foveate.FastV(3, 64, rows="all"),
    foveate.FastV(1, foveate.Share(0.9)),
    foveate.HiMAP(1, 1.0, 3, foveate.Share(0.5), deep="sends", causal_normalised=True),
    foveate.VTW(6),
    foveate.VisiPruner(("middle", "deep"), shallow=1, first_layer="halve"),
    foveate.Random(2, 0.3, seed=4),
    foveate.Uniform(2, 0),
    Dense(),
    Schedule((Cut(2, 0.5, "instruction"), foveate.FastV(4, 0.25), foveate.VTW(7))),
]
FIGURE = Figure(0.35, 0.34, 0.36)
ENTRY = Entry(
    METHODS[0],
    budget={"flops": 0.35},
    data={"source": "suite", "seed": 0, "searched": 160},
    measured=Measured(100, FIGURE, FIGURE, FIGURE, FIGURE, FIGURE),
    guard=Guard("margin", 1.25, 0.02, 0.95, 1000, 0.1, fresh=1000),
)


@pytest.fixture
def model():
    return tiny.model("llava-gqa", "sdpa")


@pytest.fixture
def policy(model):
    reading = Entry(METHODS[4], rule=Rule(first=("read",), words=("what does it say",)))
    return Policy(Model.of(model, "tiny"), {"default": ENTRY, "reading": reading, "caption": Entry(Dense())})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_comes_back_as_it_was(method):
    back = decoded(json.loads(json.dumps(encoded(method))), "here")
    assert back == method and repr(back) == repr(method)


def test_a_policy_comes_back_as_it_was(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    assert Policy.from_pretrained(tmp_path) == Policy.load(tmp_path / FILE) == policy
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "entry",
    [
        Entry(METHODS[0], measured=Measured(9, FIGURE, FIGURE, FIGURE, Figure(float("nan"), 0.0, 1.0))),
        Entry(METHODS[0], data={"seed": 5 * 10**9}),
        Entry(METHODS[0], data={"source": "x" * 301}),
    ],
    ids=("no number", "a huge number", "a long text"),
)
def test_what_could_not_be_read_again_is_not_written(model, entry, tmp_path):
    with pytest.raises(ValueError, match="could not be read again"):
        Policy(Model.of(model), {"default": entry}).save(tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def test_a_policy_next_to_a_checkpoint_of_the_hub_is_found(policy, tmp_path, monkeypatch):
    policy.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        "transformers.utils.hub.cached_file", lambda *words: asked.append(words) or str(tmp_path / FILE)
    )
    assert Policy.from_pretrained("someone/some-model") == policy
    assert asked == [("someone/some-model", FILE)]


def test_prune_takes_a_policy_and_its_file(model, policy, tmp_path):
    policy.save(tmp_path / "p.json")
    for given_ in (policy, tmp_path / "p.json", str(tmp_path / "p.json")):
        with foveate.prune(model, given_) as pruned:
            assert isinstance(pruned, Guarded) and pruned.method == METHODS[0]
    with foveate.prune(model, policy.of("reading")) as pruned:
        assert type(pruned) is Pruned and pruned.method == METHODS[4]


def test_a_kind_is_chosen_by_name_or_by_the_question(policy):
    assert policy.of("caption").entry.method == Dense()
    assert policy.asked("Read the sign, please").chosen == "reading"
    assert policy.asked("Well, what does it say?").chosen == "reading"
    assert policy.asked("what do readers say").chosen == "default"
    with pytest.raises(ValueError, match="no entry 'poems'; it has default, reading, caption"):
        policy.of("poems")


def test_another_model_is_refused(policy):
    with pytest.raises(ValueError, match=r"made for 'tiny'.*another class and config and weights.*foveate calibrate"):
        foveate.prune(tiny.model("qwen", "sdpa"), policy)
    with pytest.raises(ValueError, match="another config"):
        foveate.prune(tiny.model("llava-mha", "sdpa"), policy)


def test_other_weights_of_the_same_shape_are_refused(model, policy):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.neg_()
    with pytest.raises(ValueError, match="another weights"):
        foveate.prune(other, policy)


def test_copies_dtypes_and_kernels_of_a_model_are_the_same_model(model, policy, tmp_path):
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    foveate.prune(half, policy).remove()
    assert config_hash(half.config) == config_hash(model.config) and signs_of(half) == signs_of(model)


def changed(policy, *path, to=None, drop=False):
    data = json.loads(json.dumps(as_json(policy)))
    place = data
    for step in path[:-1]:
        place = place[step]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema is 2, and this foveate reads 1"),
        (("schema",), True, "schema is true"),
        (("colour",), "red", "no field 'colour'"),
        (("entries", "default", "kepe"), 1, "no field 'kepe'"),
        (("entries", "default", "method", "kepe"), 1, r"entries.default.method \(fastv\) has no field 'kepe'"),
        (("entries", "default", "method", "method"), "all", "no method 'all'"),
        (("entries", "default", "method", "layer"), 2.5, "layer takes a whole number, not 2.5"),
        (("entries", "default", "method", "layer"), True, "layer takes a whole number"),
        (("entries", "default", "method", "keep"), "half", "keep takes"),
        (("entries", "default", "method", "keep"), {"share": 2}, "above 0 and at most 1"),
        (("entries", "default", "method", "keep"), {"part": 0.5}, "no field 'part'"),
        (("entries", "default", "method", "keep"), 1.5, "keep=1.5"),
        (("entries", "default", "method", "rows"), ["last"], "rows takes"),
        (("entries", "default", "method"), [], "has to be an object"),
        (("entries", "default", "guard", "signal"), "mood", "margin, entropy"),
        (("entries", "default", "guard", "alpha"), 2, "from 0 to 1"),
        (("entries", "default", "measured", "flops", "mean"), None, "has to be a number"),
        (("entries", "default", "budget"), {"flops": []}, "has to be a number"),
        (("entries",), {}, 'an entry called "default"'),
        (("entries",), [], "has to be an object"),
        (("model", "name"), "evil\x1b[2J", "a line of text"),
        (("model", "kind"), 3, "a line of text"),
        (("versions",), None, "has to be an object"),
    ],
)
def test_what_does_not_fit_is_named(policy, path, value, message):
    with pytest.raises(ValueError, match=message):
        from_json(changed(policy, *path, to=value))


@pytest.mark.parametrize("path", [("model",), ("entries",), ("model", "config"), ("entries", "default", "method")])
def test_what_is_missing_is_named(policy, path):
    with pytest.raises(ValueError, match=f"lacks {path[-1]}"):
        from_json(changed(policy, *path, drop=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "no policy file"),
        (b'{"schema": 1, "mod', "no policy file"),
        (b"\xff\xfe\x00", "no policy file"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "nested too deeply"),
        (b'{"schema": NaN}', "NaN is no number"),
        (b'{"schema": 1e999}', "larger than"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "no policy file"),
        (b'{"schema": 1, "schema": 1}', "given twice"),
        (b'{"schema": "' + b"x" * 1000 + b'"}', "longer than"),
        (b'{"schema": 1}' + b" " * 2**21, "larger than a policy can be"),
        (b"null", "has to be an object"),
    ],
    ids=range(12),
)
def test_a_hostile_file_is_one_clear_error(model, tmp_path, source, message):
    path = tmp_path / "p.json"
    path.write_bytes(source)
    with pytest.raises(ValueError, match=message) as error:
        foveate.prune(model, path)
    assert str(path) in str(error.value) and len(str(error.value)) < 500


def test_a_file_cut_short_anywhere_is_refused(policy, tmp_path):
    policy.save(tmp_path / "p.json")
    source = (tmp_path / "p.json").read_bytes().rstrip()
    for end in range(0, len(source) - 1, 37):
        (tmp_path / "p.json").write_bytes(source[:end])
        with pytest.raises(ValueError, match="no policy file"):
            Policy.load(tmp_path / "p.json")


def test_a_missing_file_and_a_folder_are_told(model, tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        foveate.prune(model, str(tmp_path / "none.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        foveate.prune(model, tmp_path / "folder.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(value=json_values, place=st.integers(0, 200))
def test_no_value_anywhere_is_anything_but_a_policy_or_a_value_error(value, place):
    policy = Policy(Model("m", "k", "c", "w"), {"default": ENTRY, "r": Entry(METHODS[-1], rule=Rule(("read",)))})
    data = json.loads(json.dumps(as_json(policy)))
    spots = list(walk(data))
    holder, key = spots[place % len(spots)]
    holder[key] = value
    with suppress(ValueError):
        from_json(data)


def walk(data):
    for key in data if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from walk(data[key])


def test_layers_that_the_model_does_not_have_are_refused(model):
    policy = Policy(Model.of(model), {"default": Entry(foveate.VTW(99))})
    with pytest.raises(ValueError, match="layer 99 is out of range"):
        foveate.prune(model, policy)
