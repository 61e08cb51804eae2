"""The benchmark as a user meets it: its files, going on after a kill, pictures of one's own, errors in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from checkpoints import save_llava
from foveate.cli import app
from foveate.suite.plan import split_methods

SMALL = ["--limit", "3", "--tasks", "existence,read", "--keep", "0.5", "--batch", "2", "--timed", "1", "--rounds", "1"]
LONG = ["--limit", "10", "--tasks", "existence,read", "--keep", "0.5", "--batch", "2", "--timed", "0"]


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> str:
    return save_llava(tmp_path_factory.mktemp("llava"))


def foveate(*words: str):
    return CliRunner().invoke(app, ["bench", *words], env={"COLUMNS": "120"})


def benched(out: Path, *words: str) -> dict:
    result = foveate(*words, "-o", str(out))
    assert result.exit_code == 0, result.output
    return json.loads((out / "bench.json").read_text())


def test_a_benchmark_leaves_tables_figures_and_a_picture(llava, tmp_path):
    result = foveate("--model", llava, *SMALL, "--methods", "fastv,himap,visipruner", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    for words in (
        "50% of the layer-averaged",
        "dense",
        "random",
        "himap",
        "existence",
        "first token",
        "at visipruner's cost",
    ):
        assert words in result.stdout
    assert result.stdout.isascii()
    text = (tmp_path / "bench.md").read_text()
    for title in ("Quality", "Difference to dense", "Fidelity", "Time and memory", "existence: yes and no", "Settings"):
        assert f"## {title}" in text
    assert Image.open(tmp_path / "tradeoff.png").width > 1000

    told = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in told["rows"]}
    assert next(iter(rows)) == "dense" and {"random 50%", "uniform 50%", "visipruner", "fastv 50%"} < rows.keys()
    assert rows["himap 50%"]["settings"]["layer2"] == 2  # in proportion to 6 layers
    for row in rows.values():
        assert row["errors"] == 0 and row["speed"]["peak_bytes"] > row["speed"]["kv_cache_bytes"] > 0
        assert len(row["speed"]["first_token_seconds"]) == 1
    assert rows["random 50%"]["visual"] == pytest.approx(0.5, abs=0.05)
    assert rows["random 50%"]["beats_random"] is None and rows["fastv 50%"]["beats_random"] in (True, False)


def test_baselines_are_always_there_and_fields_of_methods_can_be_set(llava, tmp_path):
    words = ["--model", llava, *SMALL[:-4], "--timed", "0", "--methods", "himap:deep=sends"]
    told = benched(tmp_path, *words)
    assert [row["name"] for row in told["rows"]] == ["dense", "himap:deep=sends 50%", "random 50%", "uniform 50%"]
    assert told["rows"][1]["settings"]["deep"] == "sends" and told["rows"][1]["speed"] is None


def test_with_flops_on_the_dial_every_method_costs_the_same(llava, tmp_path):
    words = ["--model", llava, "--limit", "2", "--tasks", "read", "--flops", "0.8,0.7", "--methods", "fastv,himap"]
    told = benched(tmp_path, *words, "--timed", "0")
    for row in told["rows"][1:]:
        assert row["flops"] == pytest.approx(float(row["point"].rstrip("%")) / 100, abs=0.03)


def test_a_method_without_a_dial_is_compared_at_its_own_cost(llava, tmp_path):
    words = [
        "--model",
        llava,
        "--limit",
        "2",
        "--tasks",
        "read",
        "--methods",
        "fastv:layer=2:keep=0.25",
        "--timed",
        "0",
    ]
    rows = {row["name"]: row for row in benched(tmp_path, *words)["rows"]}
    assert len(rows) == 4  # no point of the dial has anything to show but baselines
    assert {row["point"] for name, row in rows.items() if name != "dense"} == {"at fastv:layer=2:keep=0.25's cost"}
    fixed = rows.pop("fastv:layer=2:keep=0.25")
    for name, row in rows.items():
        if name != "dense":
            assert row["visual"] == pytest.approx(fixed["visual"], abs=0.03)


def quality(told: dict) -> list:
    return [{key: value for key, value in row.items() if key != "speed"} for row in told["rows"]]


def test_a_killed_run_goes_on_and_ends_like_an_undisturbed_one(llava, tmp_path):
    words = ["--model", llava, *LONG, "--methods", "vtw"]
    undisturbed = benched(tmp_path / "whole", *words)
    journal = tmp_path / "killed" / "answers.jsonl"
    command = [sys.executable, "-m", "foveate", "bench", *words, "-o", str(journal.parent)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 12):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = journal.read_bytes()
    assert not (journal.parent / "bench.json").exists()
    assert before.count(b"\n") < (tmp_path / "whole" / "answers.jsonl").read_bytes().count(b"\n")

    told = benched(journal.parent, *words)
    assert quality(told) == quality(undisturbed) and told["plan"] == undisturbed["plan"]
    whole_lines = before[: before.rindex(b"\n") + 1]
    assert journal.read_bytes().startswith(whole_lines)  # nothing was done twice
    assert sorted(journal.read_bytes().splitlines()) == sorted(
        (tmp_path / "whole" / "answers.jsonl").read_bytes().splitlines()
    )


def test_a_finished_run_is_not_run_again(llava, tmp_path):
    words = ["--model", llava, *SMALL, "--methods", "vtw"]
    first = benched(tmp_path, *words)
    journal = (tmp_path / "answers.jsonl").read_bytes()
    assert benched(tmp_path, *words) == first and (tmp_path / "answers.jsonl").read_bytes() == journal


def test_ones_own_pictures_are_asked_beside_the_suite_and_a_broken_one_is_counted(llava, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [
        {"image": "a.png", "question": "is there a circle", "answer": "yes", "task": "seen"},
        {"image": "broken.png", "question": "is there a circle", "answer": "no", "task": "seen"},
        {"image": "a.png", "question": "what", "answers": ["red", "a red circle"]},
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--model", llava, "--tasks", f"read,{folder}", "--limit", "2", "--methods", "vtw", "--keep", "0.5"]
    result = foveate(*words, "--timed", "0", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "failed: 4 answers" in " ".join(result.stdout.split()) and "broken.png" in result.stdout.replace("\n", "")
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert told["plan"]["tasks"] == {"read": 2, "mine/seen": 2, "mine/vqa": 1}
    assert all(row["tasks"]["mine/seen"]["errors"] == row["errors"] == 1 for row in told["rows"])
    assert len(told["errors"]) == 4 and all("answer" not in record for record in told["errors"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "pruneall"], "no method"),
        (["--methods", "fastv:width=2"], "no field"),
        (["--tasks", "sing"], "no task"),
        (["--keep", "half"], "numbers such as"),
        (["--keep", "50"], "from 0 to 1"),
        (["--keep", "0.02"], "cannot be brought to 2%"),
        (["--keep", "0.5", "--flops", "0.5"], "two dials"),
        (["--flops", "0.1"], "cannot be brought to 10%"),
        (["--model", "./missing"], "no model folder"),
        (["--methods", "vtw:layer=40"], "out of range"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, message, llava, tmp_path):
    model = [] if "--model" in words else ["--model", llava]
    result = foveate(
        *model, "--limit", "1", *(() if "--tasks" in words else ("--tasks", "read")), *words, "-o", str(tmp_path)
    )
    assert result.exit_code == 2, result.output
    assert message in result.stderr and result.stderr.count("foveate: ") == 1


def test_a_folder_of_another_run_is_refused(llava, tmp_path):
    words = ["--model", llava, "--limit", "1", "--tasks", "read", "--methods", "vtw", "--keep", "0.5", "--timed", "0"]
    benched(tmp_path, *words)
    result = foveate(*words, "--seed", "1", "-o", str(tmp_path))
    assert result.exit_code == 2 and "other questions, seed" in result.stderr


def test_a_comma_starts_a_method_only_before_a_methods_name():
    assert split_methods("fastv, himap:deep=sends,visipruner:stages=shallow,middle:shallow=4,vtw") == (
        "fastv",
        "himap:deep=sends",
        "visipruner:stages=shallow,middle:shallow=4",
        "vtw",
    )
