"""The training code: it computes what the Hugging Face model computes, and a killed run goes on as if never killed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.suite.questions import NUMBERS
from foveate.suite.scenes import draw_scene

TRAINING = Path(__file__).parents[2] / "training"
SIZES = {"tower": (1, 64), "decoder": (2, 32, 48), "heads": 2}


@pytest.fixture(scope="module")
def training():
    """The modules of training/, which is not installed."""
    sys.path.insert(0, str(TRAINING))
    try:
        import data
        import model
        import tokenizer
        import train

        yield {"data": data, "model": model, "train": train, "tokenizer": tokenizer.make_tokenizer(scenes=100)}
    finally:
        sys.path.remove(str(TRAINING))


def test_many_questions_in_one_pass_are_each_answered_as_if_asked_alone(training):
    data, model, tokenizer = training["data"], training["model"], training["tokenizer"]
    mini = training["train"].Mini(tokenizer, **SIZES)
    batch = data.draw_batch(tokenizer, 0, 0, 2, 6, True)
    pixels = mini.normalise(torch.from_numpy(batch.pixels))[: len(batch.tasks)]  # without the pages
    with torch.no_grad():
        hidden = model.read(mini.llava, mini.system, model.see(mini.llava, pixels), tensors(batch.questions))
        for group, questions in enumerate(batch.questions):
            for b, place in ((0, 0), (0, 1), (1, 0)):
                row = torch.from_numpy(questions[b, place])
                row = row[: int((row != 0).sum())]
                image = torch.full((144,), mini.llava.config.image_token_id)
                ids = torch.cat([mini.system, image, row])[None]
                alone = mini.llava(input_ids=ids, pixel_values=pixels[b : b + 1]).logits[0, -len(row) :]
                together = mini.llava.lm_head(hidden[group][b, place, : len(row)])
                torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_the_targets_of_a_batch_spell_the_answers(training):
    data, tokenizer = training["data"], training["tokenizer"]
    batch = data.draw_batch(tokenizer, 0, 3, 2, 6, True)
    joined = [torch.from_numpy(q).flatten(1) for q in batch.questions]
    ids = torch.cat(joined, dim=1)
    for b in range(2):
        used = batch.target[b] >= 0
        assert used.sum() >= 10
        assert (ids[b, batch.at[b][used] + 1].numpy() == batch.target[b][used]).all()
        assert tokenizer.convert_ids_to_tokens([ids[b, batch.at[b][0]]]) == ["ASSISTANT:"]


def test_a_batch_is_the_same_whoever_draws_it(training):
    data, tokenizer = training["data"], training["tokenizer"]
    here = list(data.batches(tokenizer, 0, 2, 4, 2, 0, True, workers=0))
    apart = list(data.batches(tokenizer, 0, 2, 4, 2, 0, True, workers=1))
    for one, two in zip(here, apart, strict=True):
        assert (one.pixels == two.pixels).all() and (one.target == two.target).all()


def test_a_dead_drawing_process_is_an_error_and_not_an_endless_wait(training, monkeypatch):
    data = training["data"]

    def fail(*arguments):
        raise SystemExit(1)

    monkeypatch.setattr(data, "draw_batch", fail)
    with pytest.raises(RuntimeError, match="died"):
        next(data.batches(training["tokenizer"], 0, 0, 1, 1, 0, False, workers=1))


def test_every_thing_has_one_middle_patch_of_its_own_and_tells_how_many_of_its_name_there_are(training):
    data = training["data"]
    words, repeated = data.groups(), 0
    number, middle = list(words).index("number"), list(words).index("middle")
    for seed in range(30):
        scene = draw_scene("train", seed, texts=0.5, repeats=1.0)
        names = [thing.name for thing in scene.things]
        labels = data.patch_labels(scene, words).reshape(12, 12, -1)
        found = np.argwhere(labels[..., middle] == 0)
        assert len(found) == len(scene.things)
        for thing in scene.things:
            x, y = thing.centre
            nearest = min(np.hypot(12 * column + 6 - x, 12 * row + 6 - y) for row, column in found)
            assert nearest < 18  # the patch that holds the centre, or one beside it (of a ring)
        for row, column in np.argwhere(labels[..., 0] < len(words["name"])):
            count = NUMBERS.index(words["number"][labels[row, column, number]].strip())
            name = words["name"][labels[row, column, 0]].strip()
            assert name == "text" or count == names.count(name)
            repeated += count > 1
    assert repeated > 100


def test_a_tower_that_is_deepened_begins_as_what_it_was(training):
    train, tokenizer = training["train"], training["tokenizer"]
    shallow = train.Mini(tokenizer, **SIZES)
    state = {"master": {n: p.detach().clone() for n, p in shallow.named_parameters()}}
    state["master"]["none"] = state["master"]["none"][:-2]  # of a time when fewer kinds of words were taught
    deep = train.Mini(tokenizer, **SIZES | {"tower": (3, 64)}, seed=1)
    train.begin(deep, [state])
    pixels = shallow.normalise(torch.from_numpy(training["data"].draw_batch(tokenizer, 0, 0, 1, 6, False).pixels))
    see = training["model"].see
    with torch.no_grad():
        torch.testing.assert_close(see(deep.llava, pixels), see(shallow.llava, pixels))


@pytest.mark.parametrize("phase", ["tower", "whole"])
def test_a_killed_run_goes_on_bit_for_bit(training, phase, tmp_path):
    run, tokenizer = training["train"].run, training["tokenizer"]
    settings = {"batch": 1, "workers": 0, "compiled": False, "save_every": 2, "dtype": torch.float32, "sizes": SIZES}
    run(phase, tokenizer, 4, tmp_path / "whole", **settings)
    run(phase, tokenizer, 4, tmp_path / "killed", stop_at=2, **settings)
    run(phase, tokenizer, 4, tmp_path / "killed", **settings)
    whole, killed = (torch.load(tmp_path / name / "checkpoint.pt")["optimiser"] for name in ("whole", "killed"))
    assert whole["count"] == killed["count"] == 4
    for kind in ("master", "first", "second"):
        for name, weight in whole[kind].items():
            assert torch.equal(weight, killed[kind][name]), name


def test_the_second_phase_starts_from_the_tower_and_brings_patches_to_the_length_of_words(training, tmp_path):
    train, tokenizer = training["train"], training["tokenizer"]
    settings = {"batch": 1, "workers": 0, "compiled": False, "dtype": torch.float32, "sizes": SIZES}
    train.run("tower", tokenizer, 1, tmp_path / "tower", **settings)
    start = tmp_path / "tower" / "checkpoint.pt"
    train.run("whole", tokenizer, 1, tmp_path / "whole", start=[start], **settings)
    saved = torch.load(tmp_path / "whole" / "checkpoint.pt")["optimiser"]
    mini = train.Mini(tokenizer, **SIZES)
    mini.load_state_dict(saved["master"], strict=False)
    pixels = torch.from_numpy(training["data"].draw_batch(tokenizer, 0, 0, 1, 6, False).pixels)
    length = training["model"].see(mini.llava, mini.normalise(pixels)).pow(2).mean().sqrt().item()
    assert 0.2 < length < 0.45


def test_orthogonalising_brings_every_singular_value_near_one():
    sys.path.insert(0, str(TRAINING))
    try:
        from optimiser import orthogonalise
    finally:
        sys.path.remove(str(TRAINING))
    stack = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(stack).float())
    assert values.min() > 0.4 and values.max() < 1.4
