"""What a multimodal LLM computes, from its config alone: exact FLOPs, the papers' formulas, tokens, KV-cache bytes.

Arithmetic only: no weights, no torch, nothing else of foveate.
"""

from .compare import Comparison, Cost, compare
from .flops import Flops, decode, prefill
from .images import images_of, visual_tokens
from .printed import Printed, published_table
from .published import PaperShape, published
from .shapes import DecoderShape, VisionShape, decoder_shape, vision_shape
from .tables import comparison_rows, markdown, published_rows
from .tokens import kv_bytes, layer_average, tokens_per_layer, visual_per_layer

__all__ = [
    "Comparison",
    "Cost",
    "DecoderShape",
    "Flops",
    "PaperShape",
    "Printed",
    "VisionShape",
    "compare",
    "comparison_rows",
    "decode",
    "decoder_shape",
    "images_of",
    "kv_bytes",
    "layer_average",
    "markdown",
    "prefill",
    "published",
    "published_rows",
    "published_table",
    "tokens_per_layer",
    "vision_shape",
    "visual_per_layer",
    "visual_tokens",
]
