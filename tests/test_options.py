"""Words of a command line become the fields of a method, of the type that its dataclass declares."""

from dataclasses import dataclass
from typing import Literal

import pytest

from foveate.methods import METHODS, HiMAP, VisiPruner
from foveate.options import check_layers, describe, field_types, method_from, parse


def test_no_settings_give_the_defaults():
    for name, method in METHODS.items():
        assert method_from(name, []) == method()


def test_fields_are_typed_by_the_dataclass():
    settings = ["layer1=3", "keep1=0.25", "keep2=64", "deep=sends", "causal_normalised=true"]
    method = method_from("himap", settings)
    assert method == HiMAP(layer1=3, keep1=0.25, keep2=64, deep="sends", causal_normalised=True)
    assert type(vars(method)["keep2"]) is int and type(vars(method)["keep1"]) is float


def test_a_tuple_is_a_list_with_commas():
    assert method_from("visipruner", ["stages=shallow,deep"]) == VisiPruner(stages=("shallow", "deep"))
    assert method_from("visipruner", ["stages="]) == VisiPruner(stages=())


def test_an_equals_sign_in_the_value_belongs_to_the_value():
    with pytest.raises(ValueError, match="deep takes receives or sends"):
        method_from("himap", ["deep=a=b"])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fastvv", [], "choose one of fastv, himap"),
        ("himap", ["keep=0.5"], 'himap has no field "keep"; it has layer1, keep1, layer2, keep2, deep'),
        ("himap", ["keep1"], 'field=value, not "keep1"'),
        ("himap", ["keep1=half"], 'keep1 takes .*number.*, not "half"'),
        ("himap", ["layer1=2.5"], 'layer1 takes a whole number, not "2.5"'),
        ("himap", ["causal_normalised=maybe"], "true or false"),
        ("visipruner", ["stages=shallow,everywhere"], "everywhere"),
        ("fastv", ["keep=1.5"], "keep=1.5"),
    ],
)
def test_what_is_wrong_is_named_with_what_there_is(name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        method_from(name, settings)
    assert "\n" not in str(error.value)


def test_every_field_of_every_method_can_be_set_and_described():
    for name, method in METHODS.items():
        for field, hint in field_types(method).items():
            value = vars(method())[field]
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            assert method_from(name, [f"{field}={text}"]) == method()
            assert "typing" not in describe(hint) and "<" not in describe(hint)


@dataclass
class Fields:
    choice: Literal["a", "b"] | None = None


def test_an_optional_choice_takes_none():
    hint = field_types(Fields)["choice"]
    assert parse("none", hint) is None and parse("b", hint) == "b"
    with pytest.raises(ValueError):
        parse("c", hint)


@pytest.mark.parametrize(
    ("name", "layers", "remedy"), [("vtw", 12, "layer=6"), ("himap", 8, "layer1=1 --set layer2=2")]
)
def test_a_layer_that_the_model_does_not_have_is_refused_with_one_that_it_has(name, layers, remedy):
    with pytest.raises(ValueError, match=f"--set {remedy}"):
        check_layers(METHODS[name](), layers)
    check_layers(METHODS[name](), 32)


def test_the_suggested_layers_keep_their_order():
    with pytest.raises(ValueError, match="--set layer1=1 --set layer2=2"):
        check_layers(HiMAP(layer1=-1, layer2=4), 6)
