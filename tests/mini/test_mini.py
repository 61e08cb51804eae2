"""The embedded checkpoint: loads through the Auto classes, keeps its limits, and answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate.suite.questions import TASKS
from foveate.suite.scenes import draw_scene

FOLDER = Path(foveate.mini_path())


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


def prompt(processor, question):
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True)


def answers(model, processor, pictures, questions):
    inputs = processor(
        text=[prompt(processor, q) for q in questions], images=pictures, padding=True, return_tensors="pt"
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=24)
    return [t.strip() for t in processor.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)]


def held_out(task, count, first=10**6):
    asked, seed = [], first
    while len(asked) < count:
        scene = draw_scene("held-out", seed)
        question = TASKS[task](scene, np.random.default_rng(seed))
        if question:
            asked.append((scene.picture, question))
        seed += 1
    return asked


def test_the_checkpoint_keeps_its_limits(model):
    assert (FOLDER / "model.safetensors").stat().st_size <= 32 * 2**20
    assert sum(p.numel() for p in model.parameters()) <= 16e6
    assert model.config.text_config.num_hidden_layers >= 12
    assert model.config.model_type == "llava"


def test_a_prompt_has_system_text_then_144_visual_tokens_then_the_question(model, processor):
    inputs = processor(text=prompt(processor, "Is there a dog?"), images=draw_scene("held-out", 0).picture)
    ids = np.array(inputs["input_ids"][0])
    (visual,) = np.nonzero(ids == model.config.image_token_id)
    assert len(visual) == 144 and (np.diff(visual) == 1).all()
    assert ids[0] == processor.tokenizer.bos_token_id and (ids == ids[0]).sum() == 1
    assert visual[0] >= 4
    assert processor.decode(ids[visual[-1] + 1 :]) == "\nIs there a dog? ASSISTANT:"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "task, floor", [("existence", 0.9), ("colour", 0.9), ("shape", 0.9), ("count", 0.7), ("choice", 0.75)]
)
def test_it_answers_held_out_questions(processor, task, floor, dtype):
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=dtype).eval()
    asked = held_out(task, 32)
    said = answers(model, processor, [p for p, _ in asked], [q.question for _, q in asked])
    assert np.mean([s in q.answers for s, (_, q) in zip(said, asked, strict=True)]) >= floor


def test_with_a_blank_picture_it_cannot_tell_what_there_is(model, processor):
    asked = held_out("existence", 32)
    blank = [Image.new("RGB", (144, 144), (128, 128, 128))] * len(asked)
    said = answers(model, processor, blank, [q.question for _, q in asked])
    assert np.mean([s in q.answers for s, (_, q) in zip(said, asked, strict=True)]) < 0.75


def test_a_question_in_a_padded_batch_is_answered_as_alone(model, processor):
    asked = [*held_out("existence", 2), *held_out("choice", 1), *held_out("describe", 1)]
    pictures, questions = [p for p, _ in asked], [q.question for _, q in asked]
    together = answers(model, processor, pictures, questions)
    alone = [answers(model, processor, [p], [q])[0] for p, q in zip(pictures, questions, strict=True)]
    assert together == alone


@pytest.mark.parametrize(
    "text", ["a red circle", " Straße, 漢字 €5\n\tand  so on", "CamelCase 1234 ABC", "USER: hi", "🦊"]
)
def test_the_tokenizer_gives_any_text_back(processor, text):
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_drawn_word_is_spelt_in_single_characters(processor):
    assert processor.tokenizer.tokenize("A7KQ") == ["A", "7", "K", "Q"]


def test_the_demo_picture_is_there():
    assert Image.open(FOLDER / "demo.png").size == (144, 144)
