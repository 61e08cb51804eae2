"""A user's own pictures with questions."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from foveate.suite.folder import read


@pytest.fixture
def folder(tmp_path):
    """Writes rows as the JSONL file of a folder that has one picture, and returns the folder."""
    place = tmp_path / "mine"
    place.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "black.png")

    def write(*rows: dict | str):
        lines = [row if isinstance(row, str) else json.dumps({"image": "black.png", **row}) for row in rows]
        (place / "questions.jsonl").write_text("\n".join(lines))
        return place

    return write


def test_rows_become_samples_with_the_metric_that_fits_them(folder):
    rows = [
        {"question": "is it dark", "answer": "Yes", "task": "dark", "kind": "popular"},
        {"question": "what", "answers": ["black", "dark", "black", "night"]},
        {"question": "which", "answers": ["b", "black"], "task": "choice"},
        {"question": "say it", "answer": 7, "task": "signs", "metric": "anls"},
        {"question": "say it again", "answer": "stop", "task": "read"},
    ]
    samples = read(folder(*rows), 10, 0)
    assert [(s.task, s.metrics[0]) for s in samples] == [
        ("mine/dark", "yes-no"),
        ("mine/vqa", "vqa"),
        ("mine/choice", "choice"),
        ("mine/signs", "anls"),
        ("mine/read", "exact"),
    ]
    assert samples[0].answers == ("yes",) and samples[0].kind == "popular" and samples[3].answers == ("7",)
    assert samples[0].picture().size == (8, 8)


def test_the_limit_draws_from_the_whole_file_by_the_seed(folder):
    place = folder(*({"question": f"q{i}", "answer": "x"} for i in range(50)))
    numbers = [s.number for s in read(place, 5, 0)]
    assert numbers == sorted(set(numbers)) and len(numbers) == 5 and max(numbers) > 5
    assert numbers == [s.number for s in read(place, 5, 0)] != [s.number for s in read(place, 5, 1)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 2 is no JSON"),
        ("[1]", "line 2 lacks image"),
        ({"answer": "x"}, "line 2 lacks question"),
        ({"question": "q"}, "line 2 lacks answers"),
        ({"question": "q", "answer": "x", "metric": "bleu"}, "no metric.*cider"),
        ({"question": "q", "answer": "maybe", "task": "existence"}, "scored as yes or no"),
    ],
)
def test_a_line_that_lacks_something_is_named(folder, row, message):
    with pytest.raises(ValueError, match=message):
        read(folder({"question": "first", "answer": "x"}, row), 10, 0)


def test_a_folder_without_questions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs one JSONL file"):
        read(tmp_path, 10, 0)


def test_a_missing_picture_is_an_error_of_its_sample_alone(folder):
    (sample,) = read(folder({"image": "gone.png", "question": "q", "answer": "x"}), 10, 0)
    with pytest.raises(ValueError, match="no such file"):
        sample.picture()


def test_a_data_set_on_disk_is_read_like_the_file(tmp_path):
    import datasets
    import pyarrow as arrow

    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    text = datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Image(), "question": text, "answers": datasets.List(text), "task": text}
    )
    row = {"image": {"bytes": png.getvalue()}, "question": "what", "answers": ["black", "dark"], "task": "exact"}
    table = arrow.Table.from_pylist([row], schema=features.arrow_schema)
    data = datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint="0")
    data.save_to_disk(str(tmp_path / "set"))
    (sample,) = read(tmp_path / "set", 10, 0)
    assert (sample.task, sample.answers, sample.picture().size) == ("set/exact", ("black", "dark"), (8, 8))
