"""The few true differences between model families, and the gate for what cannot be pruned."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from foveate.pruning.stages import Stage

PREFIX_MODELS = frozenset({"paligemma"})  # every token of the prompt sees all of it


def unwrap(model: Any) -> PreTrainedModel:
    """The transformers model inside what torch.compile or PEFT put around it.

    Raises:
        ValueError: there is none.
    """
    model = getattr(model, "_orig_mod", model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is no transformers model: give the model itself, such as pipe.model or ddp.module"
        )
    return model


def decoder_of(model: PreTrainedModel) -> Any:
    """The module whose `layers` the text and visual tokens of a prompt run through.

    Raises:
        NotImplementedError: visual tokens cannot leave this model, with the reason.
    """
    config = model.config.get_text_config()
    if getattr(config, "cross_attention_layers", None):
        raise NotImplementedError(
            f"{type(model).__name__} reads images by cross-attention, its prompt holds no visual tokens to drop. "
            "Use a model that puts them there, such as LLaVA, Qwen-VL, InternVL or SmolVLM"
        )
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"{type(model).__name__} is an encoder-decoder; foveate prunes decoder-only models")
    decoder: Any = model.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise NotImplementedError(
            f"{type(model).__name__} has no list of decoder layers; foveate needs `get_decoder().layers`"
        )
    unknown = set(layer_kinds(config)) - {"full_attention", "sliding_attention"}
    if unknown:
        raise NotImplementedError(
            f"{type(model).__name__} has {', '.join(sorted(unknown))} layers; foveate prunes attention layers"
        )
    if getattr(config, "hidden_size_per_layer_input", None):
        raise NotImplementedError(
            f"{type(model).__name__} gives every layer inputs of its own for all tokens, dropped ones too. "
            "Use a model without them, such as Gemma 3 or Qwen-VL"
        )
    takes = inspect.signature(type(decoder.layers[0]).forward).parameters
    if "position_embeddings" not in takes and "args" not in takes:  # a wrapper's forward takes anything
        raise NotImplementedError(
            f"the layers of {type(model).__name__} take no rotary embeddings, by which foveate keeps positions. "
            "Use a model with rotary embeddings, such as LLaVA, Qwen-VL or InternVL"
        )
    return decoder


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """The kind of attention of every decoder layer, as in `config.layer_types`."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [
            "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        ] * config.num_hidden_layers
    return list(kinds)


def check_attention(config: PretrainedConfig, edits: bool) -> None:
    """Refuse attention that a method could not read rows of, or edit.

    Raises:
        NotImplementedError: the scores are not a plain softmax of QK, or cannot be masked by a tensor.
    """
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        raise NotImplementedError("softcapped attention is not read: use a method that reads no attention, like VTW")
    if text._attn_implementation == "flex_attention":
        raise NotImplementedError("flex attention is not read: load the model with attn_implementation='sdpa'")
    if edits and config.model_type in PREFIX_MODELS:
        raise NotImplementedError(
            f"{config.model_type} reads its prompt in both directions, and VisiPruner's shallow stage is causal: "
            "leave 'shallow' out of its stages"
        )


def scales_by_position(config: PretrainedConfig) -> bool:
    """Whether layers scale their queries by position (Ministral 3), and so need the survivors' own beside the rope.

    Raises:
        NotImplementedError: their flash attention would take the gaps between survivors for packed sequences.
    """
    scaled = "llama_4_scaling_beta" in (getattr(config, "rope_parameters", None) or {})
    if scaled and "flash" in str(config._attn_implementation):
        raise NotImplementedError(
            "this model scales its queries by position, and flash attention takes positions with gaps for packed "
            "sequences: load the model with attn_implementation='sdpa'"
        )
    return scaled


def check_prompt(config: PretrainedConfig, length: int) -> None:
    """Refuse a prompt that a sliding window would cut: the window would count survivors instead of positions.

    Raises:
        NotImplementedError: the prompt is longer than the window.
    """
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in layer_kinds(config) and window is not None and length > window:
        raise NotImplementedError(
            f"a prompt of {length} tokens is longer than this model's sliding window of {window}: "
            "use fewer or smaller images, or run it without pruning"
        )


def visual_ids(config: PretrainedConfig) -> list[int]:
    """The token ids that stand for one image or video feature each in a prompt."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return sorted({value for name in names if isinstance(value := getattr(config, name, None), int)})


def adapt(decoder: Any, stage: Callable[[], Stage | None]) -> Callable[[], None]:
    """Make what a decoder does between its layers right for survivors; returns the undo.

    Qwen3-VL (DeepStack) adds visual features to the visual tokens after each of its first layers, at the positions they
    have in the whole prompt; once a `stage` is in force the survivors get their own share.
    """
    process = getattr(decoder, "_deepstack_process", None)
    if process is None:
        return lambda: None

    def of_survivors(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        live = stage()
        if live is None:
            return process(hidden, visual, features)
        index, here = live.index.to(visual.device), live.layout.visual.to(visual.device)
        there = torch.zeros_like(visual).scatter(1, index, here)  # (B, L): the survivors among all visual tokens
        here = torch.nn.functional.pad(here, (0, hidden.shape[1] - here.shape[1]))  # what follows the prompt is text
        return process(hidden, here, features[there[visual].to(features.device)])

    decoder._deepstack_process = of_survivors
    return lambda: decoder.__dict__.pop("_deepstack_process", None)


def grids(model: PreTrainedModel, inputs: Mapping[str, Tensor], count: int) -> list[tuple[int, int]]:
    """Rows and columns of visual tokens of each image of a single prompt, row by row from the top left.

    Args:
        inputs: what the processor made of it.
        count: how many visual tokens the prompt has.

    Raises:
        NotImplementedError: they form no grid that can be told from the inputs, as with crops or frames.
    """
    thw = inputs.get("image_grid_thw")
    if thw is not None:  # the Qwen family says it, in patches before merging
        merge = model.config.vision_config.spatial_merge_size
        found = [(int(height) // merge, int(width) // merge) for _, height, width in thw]
    else:
        pixels = inputs.get("pixel_values")
        images = 1 if pixels is None else pixels.shape[0] if pixels.ndim == 4 else pixels.shape[1]
        side = math.isqrt(count // images)
        found = [(side, side)] * images
    if sum(rows * columns for rows, columns in found) != count:
        raise NotImplementedError(f"the {count} visual tokens of a {type(model).__name__} prompt form no known grid")
    return found
