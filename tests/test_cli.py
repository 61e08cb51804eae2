"""The command line as a user meets it: what it prints, its errors in one line with exit code 2, and its JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from typer.testing import CliRunner

from checkpoints import LAYERS, save_llava
from foveate.cli import app
from foveate.methods import METHODS

QUICK = ["--max-new-tokens", "3", "--runs", "2", "--set", "layer2=4"]


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> str:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    """Twice as wide as high: the image processor crops the middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def foveate(*words: str):
    return CliRunner().invoke(app, words, env={"COLUMNS": "120"})


def refused(*words: str) -> str:
    """The one line on stderr of a command that has to fail."""
    result = foveate(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("foveate: ") and result.stderr.count("\n") == 1
    return result.stderr


def asked(*words: str) -> dict:
    result = foveate("ask", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_ask_prints_both_answers_and_their_costs(llava, picture):
    result = foveate("ask", picture, "is there a red circle", "--model", llava, *QUICK)
    assert result.exit_code == 0, result.output
    for words in (
        "dense",
        "himap",
        "answer",
        "prefill, exact",
        "time to first token",
        "KV cache",
        "0-1: 23",
        "4-5: 9",
    ):
        assert words in result.stdout
    assert result.stdout.isascii()


def test_the_json_holds_every_figure(llava, picture):
    told = asked(picture, "is there a red circle", "--model", llava, *QUICK)
    assert told["method"] == {
        "name": "himap",
        "layer1": 2,
        "keep1": 0.5,
        "layer2": 4,
        "keep2": 0.25,
        "deep": "receives",
        "causal_normalised": False,
    }
    assert told["visual_tokens"] == 16 and told["device"] == "cpu" and told["dtype"] == "float32"
    assert [(stage["layer"], len(stage["kept"])) for stage in told["stages"]] == [(2, 8), (4, 2)]
    assert set(told["stages"][1]["kept"]) < set(told["stages"][0]["kept"]) < set(range(16))
    dense, pruned = told["dense"], told["pruned"]
    assert dense.keys() == pruned.keys()
    assert dense["tokens_per_layer"] == [23] * LAYERS and pruned["tokens_per_layer"] == [23, 23, 15, 15, 9, 9]
    # 2 KV heads of 8 numbers of 4 bytes, keys and values.
    assert dense["kv_cache_bytes"] == 23 * LAYERS * 2 * 2 * 8 * 4 and pruned["kv_cache_bytes"] == 94 * 2 * 2 * 8 * 4
    for what in ("prefill_flops_exact", "prefill_flops_published"):
        assert 0 < pruned[what] < dense[what]
    for side in (dense, pruned):
        assert len(side["first_token_seconds"]) == len(side["per_token_seconds"]) == 2
        assert min(side["first_token_seconds"] + side["per_token_seconds"]) > 0
    for ratio in told["dense_over_pruned"].values():
        assert 0 < ratio["smallest"] <= ratio["median"] <= ratio["largest"]


def test_keeping_everything_answers_and_costs_what_dense_does(llava, picture):
    told = asked(picture, "is there", "--model", llava, "--method", "uniform", "--set", "keep=1.0", "--runs", "1")
    assert told["pruned"]["answer"] == told["dense"]["answer"]
    assert told["pruned"]["prefill_flops_exact"] == told["dense"]["prefill_flops_exact"]


def test_vtw_is_counted_by_its_own_formula(llava, picture):
    told = asked(picture, "is there", "--model", llava, "--method", "vtw", "--set", "layer=3", "--runs", "1")
    assert told["published_formula"] == "vtw" and told["stages"] == [{"layer": 3, "kept": []}]


def test_a_processor_without_chat_template_gets_the_llava_prompt(tmp_path, picture):
    folder = save_llava(tmp_path, chat_template=False)
    told = asked(picture, "is there a red circle", "--model", folder, *QUICK)
    assert told["dense"]["tokens_per_layer"][0] == 16 + 7  # USER: is there a red circle ASSISTANT:


def test_the_overlay_has_a_panel_for_the_picture_and_one_for_each_stage(llava, picture, tmp_path):
    path = tmp_path / "new folder" / "overlay.png"
    told = asked(picture, "is there", "--model", llava, *QUICK, "--overlay", str(path))
    assert told["overlay"] == str(path)
    width, height = Image.open(path).size
    # The model saw the square in the middle: three square panels of 432 pixels, with gaps and margins.
    assert width == 3 * 432 + 2 * 16 + 2 * 20 and height > 432


def test_runs_repeat_themselves(llava, picture):
    a, b = (asked(picture, "is there a", "--model", llava, *QUICK) for _ in range(2))
    for side in ("dense", "pruned"):
        assert a[side]["answer"] == b[side]["answer"]
    assert a["stages"] == b["stages"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "pruneall"], "pruneall.*fastv, himap, vtw, visipruner, random, uniform"),
        (["--set", "keep=0.5"], 'himap has no field "keep"; it has layer1, keep1'),
        (["--set", "keep1=much"], 'keep1 takes .*, not "much"'),
        (["--set", "keep1=1.5"], "keep1=1.5"),
        (["--method", "vtw"], r"layer=16.*layers 1 to 5; try --set layer=3"),
        (["--method", "visipruner", "--set", "shallow=40"], "shallow=40 leaves none of 6 layers.*choose 3 or less"),
        (["--model", "no/such/folder"], "no model folder"),
        (["--model", "./missing"], "no model folder"),
        (["--dtype", "float8"], "float32, bfloat16, float16"),
        (["--device", "nowhere"], "no device"),
        (["--device", "meta"], "no device"),
        (["--attn", "quick"], "quick"),
        (["--overlay", "overlay.docx"], "overlay.docx"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, message, llava, picture):
    model = [] if "--model" in words else ["--model", llava]
    assert re.search(message, refused("ask", picture, "is there", *QUICK[:4], *model, *words))


def test_a_question_that_is_no_text_is_told_in_one_line(llava, picture):
    assert "write it in UTF-8" in refused("ask", picture, "is \udcff there", "--model", llava, *QUICK)


def test_an_unreadable_picture_is_told_in_one_line(llava, tmp_path):
    assert "no such file" in refused("ask", str(tmp_path / "missing.png"), "is there", "--model", llava)
    corrupt = tmp_path / "corrupt.png"
    corrupt.write_bytes(b"this is no picture")
    assert "corrupt.png" in refused("ask", str(corrupt), "is there", "--model", llava)
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:60])
    assert "cut.png" in refused("ask", str(cut), "is there", "--model", llava)
    assert str(tmp_path) in refused("ask", str(tmp_path), "is there", "--model", llava)


def test_a_model_without_image_tokens_is_told_in_one_line(tmp_path, picture):
    LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    assert "no image tokens" in refused("ask", picture, "is there", "--model", str(tmp_path))


def test_a_folder_without_weights_is_told_in_one_line(tmp_path, picture):
    Path(save_llava(tmp_path), "model.safetensors").unlink()
    assert "safetensors" in refused("ask", picture, "is there", "--model", str(tmp_path))
    assert "config" in refused("ask", picture, "is there", "--model", str(Path(picture).parent))


def test_broken_weights_are_told_in_one_line(tmp_path, picture):
    weights = Path(save_llava(tmp_path), "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "weights" in refused("ask", picture, "is there", "--model", str(tmp_path), *QUICK)


def test_methods_lists_every_method_with_its_fields():
    result = foveate("methods")
    assert result.exit_code == 0
    for name, method in METHODS.items():
        assert name in result.stdout and method.url in result.stdout
        for field in vars(method()):
            assert f"{field}=" in result.stdout


def test_cost_needs_the_config_alone(llava, tmp_path):
    (tmp_path / "config.json").write_text(Path(llava, "config.json").read_text())
    words = ["cost", str(tmp_path), "--set", "layer2=4", "--text", "7"]
    told = json.loads(foveate(*words, "--json").stdout)
    assert told["visual_tokens"] == 16
    assert told["pruned"]["tokens_per_layer"] == [23, 23, 15, 15, 9, 9]
    result = foveate(*words)
    assert "prefill, exact" in result.stdout and "4-5: 9" in result.stdout
    alone = foveate(*words, "--as-published")
    assert "as published" in alone.stdout and "vision tower" not in alone.stdout


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fastv", []),
        ("fastv", ["--set", "rows=all"]),
        ("himap", ["--set", "layer2=4"]),
        ("himap", ["--set", "layer2=4", "--set", "deep=sends"]),
        ("vtw", ["--set", "layer=3"]),
        ("random", []),
    ],
)
def test_cost_counts_what_a_running_model_traces(method, settings, llava, picture):
    words = ["--method", method, *settings]
    traced = asked(picture, "is there a red circle", "--model", llava, "--runs", "1", *words)
    # "USER:" stands before the image.
    told = json.loads(foveate("cost", llava, *words, "--text", "7", "--system", "1", "--json").stdout)
    for side in ("dense", "pruned"):
        assert told[side]["prefill_flops_exact"]["total"] == traced[side]["prefill_flops_exact"]
        assert told[side]["prefill_published"] == traced[side]["prefill_flops_published"]


def test_cost_reproduces_the_published_figure_of_himap(tmp_path):
    text = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    vision = CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=336, patch_size=14)
    LlavaConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    told = json.loads(foveate("cost", str(tmp_path), "--json").stdout)
    assert told["visual_tokens"] == 576
    assert told["dense"]["prefill_published"] == pytest.approx(2.986076e12, rel=1e-6)
    assert told["pruned"]["prefill_published"] == pytest.approx(0.735308e12, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "fastv", "--image-size", "big"], "HEIGHTxWIDTH"),
        (["--method", "vtw"], "try --set layer=3"),
        (["--set", "wrong=1"], "no field"),
    ],
)
def test_cost_tells_what_is_wrong_in_one_line(words, message, llava):
    assert message in refused("cost", llava, *words)


def test_help_and_version_do_not_wait_for_torch():
    script = (
        "import sys; from typer.testing import CliRunner; from foveate.cli import app; run = CliRunner().invoke\n"
        "for words in (['--help'], ['ask', '--help'], ['cost', '--help'], ['methods', '--help'], ['--version']):\n"
        "    assert run(app, words).exit_code == 0, words\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_the_command_runs_as_a_process_with_errors_on_stderr_alone(llava, tmp_path):
    command = [sys.executable, "-m", "foveate", "ask", str(tmp_path / "none.png"), "is there", "--model", llava]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert run.returncode == 2 and run.stdout == "" and "Traceback" not in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_memory_too_small_is_told_in_one_line(llava, picture, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("foveate.ask.load", full)
    assert "--dtype bfloat16" in refused("ask", picture, "what is it?", "--model", llava)
