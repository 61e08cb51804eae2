"""Foveate: find where a vision-language model looks, and stop computing the rest."""

from foveate.entry import prune
from foveate.methods import VTW, FastV, HiMAP, Random, Uniform, VisiPruner
from foveate.mini import mini_path

__all__ = ["VTW", "FastV", "HiMAP", "Random", "Uniform", "VisiPruner", "mini_path", "prune"]
