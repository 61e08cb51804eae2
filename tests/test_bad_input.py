"""Bad input of every kind: one clear error, nothing half-written, and the model is what it was."""

import io
import json
import pickle
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoints
import foveate
import matrix
import tiny_families
from foveate import ask, files
from foveate.flow.result import Result
from foveate.suite import folder
from foveate.suite.journal import Journal
from test_nothing_left_behind import snapshot

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


# ---- pictures


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int) -> bytes:
    """A PNG of any size that says so in its header and holds a few rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged() -> dict[str, bytes]:
    """Files that begin like pictures: cut short, and with bytes overwritten."""
    draw, made = random.Random(0), {}
    for kind in KINDS:
        whole = encoded(picture(), kind)
        for part in (0, 1, 4, 8, 15, 20, 30, 50, 70, 90):
            made[f"{kind} cut to {part} %"] = whole[: len(whole) * part // 100]
        for number in range(30):
            data = bytearray(whole)
            for _ in range(draw.choice((1, 3, 10, 60))):
                data[draw.randrange(len(data))] = draw.randrange(256)
            made[f"{kind} overwritten {number}"] = bytes(data)
    for number in range(20):
        made[f"noise {number}"] = draw.randbytes(draw.choice((1, 10, 1000)))
    return made


@pytest.mark.parametrize("kind", (*KINDS, "noise"))
def test_a_damaged_picture_is_a_picture_or_one_error_that_names_the_file(kind, tmp_path):
    """What can be read in spite of the damage is RGB; all else is a ValueError, whatever Pillow's decoders raise."""
    refused = 0
    for name, data in damaged().items():
        if name.startswith(kind):
            file = tmp_path / "picture"
            file.write_bytes(data)
            try:
                assert ask.read_picture(file).mode == "RGB", name
            except ValueError as error:
                assert str(error).startswith(f"cannot read the picture {file}: "), name
                refused += 1
    assert refused >= 6


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((0, 5), "not a whole picture"),
        ((5, 0), "not a whole picture"),
        ((2**31 - 1, 2**31 - 1), "too many"),
        ((30_000, 30_000), "too many"),
        ((12_000, 12_000), "too many"),
        ((20_000, 1), "strip"),
        ((1, 2**20), "strip"),
        ((64, 64), "not a whole picture"),
    ],
)
def test_a_picture_of_an_impossible_size_is_refused_before_it_is_decoded(size, reason, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(png(*size))
    with pytest.raises(ValueError, match=reason):
        ask.read_picture(tmp_path / "x.png")


@pytest.mark.parametrize("mode", ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16"))
def test_every_kind_of_pixel_becomes_rgb(mode, tmp_path):
    if mode == "I;16":
        image = Image.fromarray((np.arange(24 * 16).reshape(16, 24) * 170).astype(np.uint16))
    elif mode == "I":
        image = Image.fromarray((np.arange(24 * 16).reshape(16, 24) * 170).astype(np.int32))
    else:
        image = picture().convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else "TIFF"
    if mode in ("PA", "HSV"):
        assert ask.in_rgb(image).mode == "RGB"
        return
    (tmp_path / "x").write_bytes(encoded(image, kind))
    read = ask.read_picture(tmp_path / "x")
    assert read.mode == "RGB" and read.size == (24, 16)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(4, 0)
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(ramp), "PNG"))
    shades = np.asarray(ask.read_picture(tmp_path / "x.png"))[0, :, 0]
    assert np.abs(shades.astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("values", (0.5, -1.0, float("nan"), 1e30))
def test_a_file_of_numbers_is_no_picture(values, tmp_path):
    (tmp_path / "x.tiff").write_bytes(encoded(Image.new("F", (8, 8), values), "TIFF"))
    with pytest.raises(ValueError, match="not a whole picture"):
        ask.read_picture(tmp_path / "x.tiff")


@pytest.mark.parametrize("kind", ("GIF", "WEBP", "TIFF", "PNG"))
def test_of_several_frames_the_first_is_read(kind, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    (tmp_path / "x").write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    red, green, blue = np.asarray(ask.read_picture(tmp_path / "x"))[4, 4]
    assert red > 200 and max(green, blue) < 60


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in (("", "not a whole"), ("gone.png", "no such file"), ("loop", "not a whole"), ("\0", "not a")):
        with pytest.raises(ValueError, match=reason):
            ask.read_picture(tmp_path / name)


# ---- prompts and features


@pytest.fixture
def model_stays():
    """The model is the same after whatever the test does to it, and still prunes rightly."""

    def check(family: str, break_it) -> None:
        net, inputs = tiny_families.model(family, "sdpa"), tiny_families.batch(family, matrix.ONE)
        with torch.no_grad():
            matrix.generate(net, inputs)  # lets transformers settle what it keeps from the first run on
        before = snapshot(net)
        with foveate.prune(net, matrix.METHODS["himap"]):
            with pytest.raises((ValueError, RuntimeError, IndexError)) as caught:
                break_it(net, {name: value.clone() for name, value in inputs.items()})
            with torch.no_grad():
                out = matrix.generate(net, inputs)
        matrix.check(matrix.Case(family, "himap"), out, matrix.ONE)
        after = snapshot(net)
        assert all(before[key] == after[key] for key in before)
        assert str(caught.value).strip()

    return check


def with_placeholders(inputs: dict[str, torch.Tensor], change: int) -> dict[str, torch.Tensor]:
    """So many placeholders more, or fewer."""
    ids = inputs["input_ids"]
    column, width = int((ids[0] == tiny_families.IMAGE).nonzero()[0]), ids.shape[1]
    for name, value in inputs.items():
        if value.ndim == 2 and value.shape[1] == width:
            more = [value[:, column : column + 1]] * max(change, 0)
            inputs[name] = torch.cat([value[:, :column], *more, value[:, column + max(-change, 0) :]], dim=1)
    return inputs


@pytest.mark.parametrize("change", (-5, -1, 1, 7), ids=lambda n: f"{n:+d}")
@pytest.mark.parametrize("family", matrix.FAMILIES)
def test_a_prompt_with_the_wrong_number_of_placeholders_is_one_error(family, change, model_stays):
    def run(net, inputs):
        with torch.no_grad():
            matrix.generate(net, with_placeholders(inputs, change))

    model_stays(family, run)


@pytest.mark.parametrize("number", (float("nan"), float("inf"), -float("inf")), ids=str)
@pytest.mark.parametrize("family", matrix.FAMILIES)
def test_features_that_are_no_numbers_are_refused(family, number, model_stays):
    def run(net, inputs):
        inputs["pixel_values"].view(-1)[3] = number
        with torch.no_grad():
            matrix.generate(net, inputs)

    model_stays(family, run)


@pytest.mark.parametrize("shape", ((0, 9), (1, 0), (0, 0)), ids=str)
@pytest.mark.parametrize("family", ("llava", "qwen2.5-vl", "gemma3"))
def test_an_empty_batch_is_refused(family, shape, model_stays):
    def run(net, inputs):
        ids = torch.zeros(shape, dtype=torch.long)
        net(input_ids=ids, attention_mask=torch.ones_like(ids))

    model_stays(family, run)


# ---- model folders


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Path(checkpoints.save_llava(tmp_path_factory.mktemp("model") / "llava"))


def write(name: str, text: str | bytes):
    return lambda place: (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def change(name: str, **fields):
    def run(place: Path) -> None:
        found = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps(found | fields))

    return run


def cut(name: str, part: float):
    def run(place: Path) -> None:
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[: int(len(data) * part)])

    return run


def gone(*names: str):
    def run(place: Path) -> None:
        for name in names:
            (place / name).unlink()

    return run


class Payload:
    """Unpickling this would leave a file behind."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place / "executed",)


def pickled_weights(place: Path) -> None:
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(place)))


def remote_code(place: Path) -> None:
    change("config.json", model_type="theirs", auto_map={"AutoConfig": "code.C"})(place)
    (place / "code.py").write_text("from pathlib import Path\nPath(__file__).with_name('executed').touch()\n")


def fewer_weights(place: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    save_file(dict(list(weights.items())[5:]), place / "model.safetensors", {"format": "pt"})


FILES = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")
BROKEN = {
    "no processor": gone("processor_config.json"),
    "no tokenizer": gone("tokenizer.json", "tokenizer_config.json"),
    "no config": gone("config.json"),
    "no weights": gone("model.safetensors"),
    "pickled weights": pickled_weights,
    "code of its own": remote_code,
    "fewer weights": fewer_weights,
    "unknown model": change("config.json", model_type="nothing"),
    "no model type": change("config.json", model_type=None, architectures=None),
    "a text model": write("config.json", json.dumps({"model_type": "llama"})),
    "other shapes": change("config.json", text_config={"model_type": "llama", "hidden_size": 16}),
    "weights elsewhere": lambda place: (
        (place / "model.safetensors").rename(place / "part.safetensors"),
        (place / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../../../etc/passwd"}})
        ),
    ),
    **{f"{name} empty": write(name, "") for name in FILES},
    **{f"{name} is no JSON": write(name, "{" * 50) for name in FILES},
    **{f"{name} is a list": write(name, "[1, 2]") for name in FILES if name != "model.safetensors"},
    **{f"{name} is deep": write(name, "[" * 100_000) for name in FILES},
    **{f"{name} cut to {part}": cut(name, part) for name in FILES for part in (0.1, 0.5, 0.9)},
    "huge header": write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "header of nonsense": write("model.safetensors", struct.pack("<Q", 8) + b"\xff" * 8),
    "layers as text": change("config.json", text_config={"model_type": "llama", "num_hidden_layers": "many"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_folder_is_one_error_on_one_line_and_runs_nothing(what, checkpoint, tmp_path):
    place = tmp_path / "llava"
    shutil.copytree(checkpoint, place)
    BROKEN[what](place)
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises((ValueError, OSError)) as error:
        ask.load(str(place), None, "auto", "cpu")
    message = str(error.value)
    assert "\n" not in message and str(place) in message
    assert sorted(path.name for path in place.iterdir()) == before  # in particular, nothing was executed


def test_the_untouched_folder_loads(checkpoint):
    model, processor = ask.load(str(checkpoint), None, "auto", "cpu")
    assert not model.training and processor.image_processor is not None


# ---- folders of questions, results, journals

HOSTILE = [
    "[" * 100_000,
    '{"image": "a.png", "question": "q", "answer": ' + "9" * 10_000 + "}",
    '{"image": "a.png", "question": "q", "answers": [[1]]}',
    '{"image": "a.png", "question": "q", "answers": {"a": 1}}',
    '{"image": "a.png", "question": ["q"], "answer": "x"}',
    '{"image": "a.png", "question": "q", "answer": "x", "task": ["t"]}',
    '{"image": "a.png", "question": "q", "answer": "x", "metric": {}}',
    '{"image": "../../etc/passwd", "question": "q", "answer": "x"}',
    '{"image": "/etc/passwd", "question": "q", "answer": "x"}',
    '{"image": "a\\u0000.png", "question": "q", "answer": "x"}',
    '{"image": 7, "question": "q", "answer": "x"}',
    '{"image": "a.png"',
    "null",
    "NaN",
    '"text"',
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line[:50])
def test_a_hostile_line_of_questions_is_named(line, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "question": "q", "answer": "x"}\n' + line)
    with pytest.raises(ValueError, match="line 2"):
        folder.read(tmp_path, 10, 0)


def test_questions_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b'{"image": "\xff\xfe"}')
    with pytest.raises(ValueError, match="UTF-8"):
        folder.read(tmp_path, 10, 0)


@pytest.mark.parametrize("part", [*range(0, 100, 4), 99], ids=lambda part: f"{part} %")
def test_a_result_that_is_cut_short_is_refused(part, tmp_path):
    result = Result("saliency", {"x": np.ones((2, 3))}, {"x": ("layer",)}, {}, ["a", "b"], {})
    result.save(tmp_path / "x.npz")
    assert np.array_equal(Result.load(tmp_path / "x.npz").values["x"], result.values["x"])
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: len(data) * part // 100])
    with pytest.raises(ValueError, match=r"no whole result.*again"):
        Result.load(tmp_path / "x.npz")


def test_a_result_that_hides_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", __header__=np.array([Payload(tmp_path)], dtype=object))
    with pytest.raises(ValueError, match="no whole result"):
        Result.load(tmp_path / "x.npz")
    assert not (tmp_path / "executed").exists()


RECORDS = [
    "{",
    "[]",
    "1",
    '{"sample": "s"}',
    '{"sample": [1], "setting": {}}',
    '{"memory": 1}',
    "[" * 100_000,
    "9" * 9000,
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record[:30])
@pytest.mark.parametrize("number", (1, 2))
def test_a_journal_with_a_broken_line_is_refused_and_kept(record, number, tmp_path):
    file, plan = tmp_path / "journal.jsonl", {"seed": 0}
    lines = ['{"plan": {"seed": 0}}', '{"setting": "dense", "sample": "a", "words": "yes"}', ""]
    lines[number - 1] = record
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"journal\.jsonl.*-o"):
        Journal(file, plan)
    assert file.read_text() == "\n".join(lines)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    file = tmp_path / "results.json"
    files.write(file, "old")

    def fail(half: Path) -> None:
        half.write_text("ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        files.save(file, fail)
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_nothing_in_the_package_unpickles_or_runs_what_it_was_given():
    source = "\n".join(path.read_text() for path in Path(foveate.__file__).parent.rglob("*.py"))
    for word in ("pickle.load", "torch.load(", "allow_pickle=True", "trust_remote_code=True", "eval(", "exec("):
        assert word.replace("eval(", " eval(") not in source, word
