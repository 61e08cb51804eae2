"""What a multimodal LLM computes, from its config alone: exact FLOPs, the papers' formulas, tokens, KV-cache bytes.

Arithmetic only: no weights, no torch, nothing else of foveate.
"""

from .flops import Flops, decode, prefill
from .published import PaperShape, published
from .shapes import DecoderShape, VisionShape, decoder_shape, vision_shape
from .tokens import images_of, kv_bytes, layer_average, tokens_per_layer, visual_per_layer, visual_tokens

__all__ = [
    "DecoderShape",
    "Flops",
    "PaperShape",
    "VisionShape",
    "decode",
    "decoder_shape",
    "images_of",
    "kv_bytes",
    "layer_average",
    "prefill",
    "published",
    "tokens_per_layer",
    "vision_shape",
    "visual_per_layer",
    "visual_tokens",
]
