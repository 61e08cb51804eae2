"""How visual information flows through a model: one module per analysis, each `(model, samples) -> Result`."""

from foveate.flow.attention import allocation
from foveate.flow.critical import critical
from foveate.flow.knockout import KINDS, Edges, bias_ratio, knockout
from foveate.flow.lens import lenses
from foveate.flow.merging import merging
from foveate.flow.result import Result
from foveate.flow.saliency import saliency
from foveate.flow.samples import Batch, prepare
from foveate.flow.windows import windows
from foveate.flow.withdrawal import search, withdrawal

__all__ = [
    "KINDS",
    "Batch",
    "Edges",
    "Result",
    "allocation",
    "bias_ratio",
    "critical",
    "knockout",
    "lenses",
    "merging",
    "prepare",
    "saliency",
    "search",
    "windows",
    "withdrawal",
]
