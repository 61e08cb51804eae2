import numpy as np
import pytest

from foveate.suite.scenes import SIZE, SPLITS, draw_page, draw_scene, pictograms, stream, withheld


def test_a_scene_is_the_same_whenever_its_seed_is_drawn():
    for seed in range(5):
        one, two = draw_scene("train", seed), draw_scene("train", seed)
        assert one.things == two.things
        assert one.picture.tobytes() == two.picture.tobytes()
        assert np.array_equal(one.owner, two.owner)


def test_training_and_held_out_scenes_share_no_random_stream():
    drawn = {split: {stream(split, seed)[0].bytes(16) for seed in range(200)} for split in SPLITS}
    assert len(drawn["train"]) == len(drawn["held-out"]) == 200
    assert not drawn["train"] & drawn["held-out"]


def test_training_keeps_pictograms_off_their_withheld_places_and_sizes_and_held_out_does_not():
    seen = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for seed in range(60):
            for thing in draw_scene(split, seed).things:
                if thing.kind == "pictogram":
                    left, _, right, _ = thing.box
                    x, y = thing.centre
                    seen[split] += withheld(thing.name, x, y, right - left)
    assert seen["train"] == 0
    assert seen["held-out"] > 0


def test_things_lie_in_the_picture_and_do_not_overlap():
    for seed in range(40):
        scene = draw_scene("held-out", seed)
        assert scene.picture.size == (SIZE, SIZE)
        for i, thing in enumerate(scene.things):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            inside = scene.owner[top:bottom, left:right] == i
            assert inside.any()
            assert (scene.owner == i).sum() == inside.sum()


def test_every_character_of_a_drawn_text_has_its_box_from_left_to_right():
    texts = [t for seed in range(60) for t in draw_scene("train", seed).things if t.kind == "text"]
    assert texts
    for text in texts:
        assert "".join(character for character, _ in text.letters) == text.name
        lefts = [box[0] for _, box in text.letters]
        assert lefts == sorted(lefts)


def test_at_most_so_many_things_as_asked():
    assert all(len(draw_scene("train", seed, most=2).things) <= 2 for seed in range(40))


def test_every_pictogram_has_its_own_drawing():
    sprites = {sprite.tobytes() for _, sprite in pictograms().values()}
    assert len(sprites) == len(pictograms()) == 50


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train, held-out"):
        draw_scene("test", 0)


def test_a_page_holds_only_texts_that_do_not_overlap():
    for seed in range(20):
        page = draw_page("train", seed)
        assert page.things and all(thing.kind == "text" for thing in page.things)
        assert all(len(thing.letters) == len(thing.name) for thing in page.things)
        assert sorted({*page.owner.ravel().tolist()} - {-1}) == list(range(len(page.things)))


def test_the_share_of_scenes_with_a_text_can_be_chosen():
    def texts(share):
        return sum(any(t.kind == "text" for t in draw_scene("train", s, 6, share).things) for s in range(30))

    assert texts(0.0) == 0 < texts(0.4) < texts(1.0)
