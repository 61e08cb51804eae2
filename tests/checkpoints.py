"""A tiny random checkpoint with a processor of its own, written to a folder: what a user would point `--model` at."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

LAYERS = 6
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"]
WORDS += ["is", "there", "a", "red", "circle", "yes", "no"]
PAD, BOS, EOS, IMAGE = 0, 1, 2, 4
TEMPLATE = "USER: <image> {{ messages[0]['content'][1]['text'] }} ASSISTANT:"
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def save_llava(folder: Path, chat_template: bool = True) -> str:
    """A LLaVA of 6 layers with 16 visual tokens for a centre-cropped picture of 32 x 32 pixels."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**vision, image_size=32, patch_size=8, projection_dim=32),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=16,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE if chat_template else None,
    ).save_pretrained(folder)
    return str(folder)


def load_lively(folder: Path) -> tuple:
    """A checkpoint in `folder`, loaded, with weights under which tokens matter and answers differ."""
    from foveate import ask

    model, processor = ask.load(save_llava(folder), None, "auto", "cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(20.0 if "embed" in name or "lm_head" in name else 10.0 if "q_proj" in name else 5.0)
        model.get_output_embeddings().weight[IMAGE] = 0  # nobody says a placeholder
    return model, processor
