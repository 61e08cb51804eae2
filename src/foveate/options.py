"""Words of a command line become a method: `himap`, `keep1=0.25` -> HiMAP(keep1=0.25)."""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from foveate.methods import Method, Share, by_name

TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def method_from(name: str, settings: Sequence[str]) -> Method:
    """The method called `name`, its fields set from `field=value` words and typed by the dataclass.

    Raises ValueError naming what there is for an unknown method or field and a value of the wrong type.
    """
    method = by_name(name)
    hints = field_types(method)
    values = {}
    for word in settings:
        field, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f'--set needs field=value, not "{word}"; {name} has {", ".join(hints)}')
        if field not in hints:
            raise ValueError(f'{name} has no field "{field}"; it has {", ".join(hints)}')
        try:
            values[field] = parse(text, hints[field])
        except ValueError:
            raise ValueError(f'{name}: {field} takes {describe(hints[field])}, not "{text}"') from None
    return method(**values)


def field_types(method: type) -> dict[str, Any]:
    """The fields of a method's dataclass and their types, in order."""
    hints = get_type_hints(method)
    return {field.name: hints[field.name] for field in dataclasses.fields(method)}


def parse(text: str, hint: Any) -> Any:
    """`text` as a value of the type `hint`: "64" is an int where a type takes both int and float, "64.0" a float.

    A tuple is a list of words with commas, a share of the score "share=0.9". Raises ValueError if it is no such value.
    """
    if get_origin(hint) in (Union, types.UnionType):
        # The narrower type first: a count of 64 must not become the fraction 64.0.
        members = sorted(get_args(hint), key=lambda member: (member is not int, member is not float))
        for member in members:
            try:
                return parse(text, member)
            except ValueError:
                continue
        raise ValueError(text)
    if get_origin(hint) is Literal:
        for choice in get_args(hint):
            if text == str(choice):
                return choice
        raise ValueError(text)
    if get_origin(hint) is tuple:
        return tuple(parse(part.strip(), get_args(hint)[0]) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in TRUTHS:
            raise ValueError(text)
        return TRUTHS[text.lower()]
    if hint is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    if hint is Share:
        if not text.startswith("share="):
            raise ValueError(text)
        return Share(float(text.removeprefix("share=")))
    return hint(text)


def describe(hint: Any) -> str:
    """A type in words that a user can act on."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a comma-separated list of {describe(get_args(hint)[0])}"
    if hint is type(None):
        return "none"
    return {
        int: "a whole number",
        float: "a number with a point",
        bool: "true or false",
        str: "a word",
        Share: "share=P, the smallest set with that share of the score",
    }.get(hint, str(hint))


def check_layers(method: Method, layers: int) -> None:
    """Refuse layers that a model of `layers` layers does not have, and suggest some that it has.

    The published layers are those of 32-layer models; the suggestion is in proportion.
    """
    fields = {field: value for field, value in settings_of(method).items() if field.startswith("layer")}
    for field, value in fields.items():
        if not 0 < value < layers:
            scaled: dict[str, int] = {}
            for name, layer in fields.items():
                after = max(scaled.values(), default=0)  # a later cut stays the later one
                scaled[name] = min(max(round(layer * layers / 32), after + 1), layers - 1)
            raise ValueError(
                f"{method.name}: {field}={value}, but this model can drop tokens before layers 1 to {layers - 1}; "
                f"try {' '.join(f'--set {name}={layer}' for name, layer in scaled.items())}"
            )


def settings_of(method: Method) -> dict[str, Any]:
    """The fields of a method and their values, as JSON can hold them and `--set` takes them."""
    return {field: word_of(value) for field, value in vars(method).items()}


def word_of(value: Any) -> Any:
    """A value of a field: a share of the score as "share=0.9", a tuple as a list, methods in it as text."""
    if isinstance(value, Share):
        return f"share={value.share:g}"
    if isinstance(value, tuple):
        return [word_of(part) for part in value]
    return str(value) if isinstance(value, Method) else value
