"""The pruning methods, one file each."""

from __future__ import annotations

from foveate.methods.base import Method
from foveate.methods.fastv import FastV
from foveate.methods.himap import HiMAP
from foveate.methods.random import Random
from foveate.methods.share import Share
from foveate.methods.uniform import Uniform
from foveate.methods.visipruner import VisiPruner
from foveate.methods.vtw import VTW

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (FastV, HiMAP, VTW, VisiPruner, Random, Uniform)}


def by_name(name: str) -> type[Method]:
    """The class of a method, by the name that strings and the command line use.

    Raises:
        ValueError: there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "VTW", "FastV", "HiMAP", "Method", "Random", "Share", "Uniform", "VisiPruner", "by_name"]
