"""Methods as JSON and back: what a policy file says of a method is taken only if every field is known and fits."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from foveate.methods import METHODS, Method, Share
from foveate.options import describe, field_types
from foveate.policy.schedule import Cut, Dense, Schedule

PARTS: dict[str, type[Method]] = {**METHODS, **{part.name: part for part in (Cut, Dense, Schedule)}}
LARGEST = 10**9  # of a number in a policy file: no layer, count or threshold is near it
LONGEST = 300  # characters of a text, and entries of a list or an object
DEEPEST = 12  # objects and lists within one another


def encoded(method: Method) -> dict[str, Any]:
    """A method as JSON: its name and all its fields."""
    return {"method": method.name, **{field: plain(value) for field, value in vars(method).items()}}


def plain(value: Any) -> Any:
    if isinstance(value, Method):
        return encoded(value)
    if isinstance(value, Share):
        return {"share": value.share}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def decoded(data: Any, place: str) -> Method:
    """The method that `encoded` wrote; fields that are left out have their defaults.

    Args:
        place: where in the file it stands, for messages.

    Raises:
        ValueError: an unknown method or field, or a value that a field does not take.
    """
    fields = dict(mapping(data, place))
    name = fields.pop("method", None)
    if not isinstance(name, str) or name not in PARTS:
        raise ValueError(f"{place}: there is no method {name!r}; there are {', '.join(PARTS)}")
    hints = field_types(PARTS[name])
    check_fields(fields, hints, f"{place} ({name})")
    return PARTS[name](**{field: value_of(value, hints[field], f"{place}.{field}") for field, value in fields.items()})


def value_of(data: Any, hint: Any, place: str) -> Any:
    """A JSON value as the type of a field."""
    if get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            if member is type_of(data):
                return value_of(data, member, place)
    elif get_origin(hint) is tuple:
        if isinstance(data, list):
            return tuple(value_of(part, get_args(hint)[0], f"{place}[{i}]") for i, part in enumerate(data))
    elif get_origin(hint) is Literal:
        if data in get_args(hint):
            return data
    elif hint is Method:
        return decoded(data, place)
    elif hint is Share and isinstance(data, dict):
        check_fields(data, {"share"}, place)
        return Share(value_of(data.get("share"), float, f"{place}.share"))
    elif hint is float and type_of(data) in (int, float):
        return float(data)
    elif type_of(data) is hint:
        return data
    raise ValueError(f"{place} takes {describe(hint)}, not {json.dumps(data)[:60]}")


def type_of(data: Any) -> type:
    """The type that a JSON value would be a field of; an object stands for a share."""
    return Share if isinstance(data, dict) else type(data)


def mapping(data: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{place} has to be an object, not {json.dumps(data)[:60]}")
    return data


def check_fields(data: Mapping[str, Any], known: Any, place: str) -> None:
    """Refuse what is unknown: a field that is passed over would be a setting that is silently not in force."""
    if unknown := [field for field in data if field not in known]:
        raise ValueError(f"{place} has no field {unknown[0]!r}; it has {', '.join(known)}")


def number(data: Any, place: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A JSON number between two others."""
    if type(data) not in (int, float) or not low <= data <= high:
        raise ValueError(f"{place} has to be a number from {low:g} to {high:g}, not {json.dumps(data)[:60]}")
    return data


def text(data: Any, place: str) -> str:
    """A JSON text that can be printed."""
    if not isinstance(data, str) or not data.isprintable():
        raise ValueError(f"{place} has to be a line of text, not {json.dumps(data)[:60]}")
    return data


def parse(source: str) -> Any:
    """JSON that nobody could mean badly: no deep nesting, no huge numbers or texts, no field given twice, no NaN.

    Raises:
        ValueError: it is no JSON, or not of that kind.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(found)
        if len(whole) < len(found):
            raise ValueError("a field is given twice")
        return whole

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    try:
        data = json.loads(source, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    walk(data, check_size)
    return data


def walk(data: Any, check: Callable[[Any, int], None], depth: int = 0) -> None:
    check(data, depth)
    for part in [*data, *data.values()] if isinstance(data, dict) else data if isinstance(data, list) else ():
        walk(part, check, depth + 1)


def check_size(data: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if type(data) in (int, float) and not abs(data) <= LARGEST:
        raise ValueError(f"a number in it is larger than {LARGEST}")
    if isinstance(data, str | list | dict) and len(data) > LONGEST:
        raise ValueError(f"something in it is longer than {LONGEST}")
