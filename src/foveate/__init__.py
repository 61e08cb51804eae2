"""Foveate: find where a vision-language model looks, and stop computing the rest."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foveate.mini import mini_path

if TYPE_CHECKING:
    from foveate import cost, methods
    from foveate.entry import prune
    from foveate.methods import VTW, FastV, HiMAP, Random, Share, Uniform, VisiPruner
    from foveate.policy import Policy

__all__ = [
    "VTW",
    "FastV",
    "HiMAP",
    "Policy",
    "Random",
    "Share",
    "Uniform",
    "VisiPruner",
    "cost",
    "methods",
    "mini_path",
    "prune",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: without this, `foveate --help` would wait for torch."""
    if name in ("cost", "methods"):
        return import_module(f"foveate.{name}")
    if name in __all__:
        place = {"prune": "foveate.entry", "Policy": "foveate.policy"}.get(name, "foveate.methods")
        return getattr(import_module(place), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
