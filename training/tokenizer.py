"""Makes mini's tokenizer and processor: byte-level BPE, so that any text can be written.

Drawn words are capitals and digits; each is a token of its own, so reading is spelling. It knows nothing of the model.
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerFast

from foveate.suite.questions import NUMBERS, TASKS, ask
from foveate.suite.scenes import COLOURS, SHAPES, draw_scene, pictograms
from model import GRID, IMAGE_SIZE, PATCH

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:"
SYSTEM = "A chat about a picture."
ORDINALS = ("first", "second", "third", "fourth")
SIDES = ("top", "bottom", "left", "right")
TEMPLATE = (  # the system text comes first in a conversation; the picture and the question follow
    "{% if messages[0]['role'] != 'system' %}" + SYSTEM + " {% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def taught_words() -> list[str]:
    """Every word that a patch can be taught to mean; each must be one token (with its leading space)."""
    return [*SHAPES, *pictograms(), *COLOURS, *NUMBERS, *ORDINALS, *SIDES, "text", "yes", "no"]


def corpus(scenes: int = 3000):
    for seed in range(scenes):
        scene = draw_scene("train", 10**9 + seed)
        rng = np.random.default_rng([7, seed])
        for question in ask(scene, rng, tuple(TASKS)):
            yield f"{SYSTEM} {question.question} {question.answers[0]}"
            yield f"\n{question.question}"
            yield f"\n{question.question.capitalize()}"
    for word in taught_words():
        for _ in range(50):
            yield f"a {word}, the {word} and {word}s"


def make_tokenizer(vocabulary: int = 1024, scenes: int = 3000) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[A-Z](?![a-z])|[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    marks = [AddedToken(t, normalized=False, special=True) for t in (PAD, BOS, EOS, IMAGE, USER, ASSISTANT)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=20,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(scenes), trainer)
    written = json.loads(core.to_str())
    for mark in written["added_tokens"]:  # the roles are one token each, but text: decoding keeps them
        mark["special"] = mark["content"] not in (USER, ASSISTANT)
    core = Tokenizer.from_str(json.dumps(written))
    bos = core.token_to_id(BOS)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def run_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a training run: made once and kept, since the learnt word embeddings hang on its numbering."""
    if not (folder / "tokenizer.json").exists():
        make_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )
    assert GRID * PATCH == IMAGE_SIZE
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )
