"""The README's code runs as it stands, and its files and commands exist."""

import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import foveate
import tiny
from foveate.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    Image.new("RGB", (144, 144), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    assert "layer 2: 72 of 144 visual tokens kept" in capsys.readouterr().out


@pytest.fixture(scope="module")
def loudest():
    """The method of CONTRIBUTING.md."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert code is not None
    names = {"__name__": "example"}
    exec(compile(code[1], "CONTRIBUTING.md", "exec"), names)
    return names["Loudest"]


def kept_by(method) -> list[list[int]]:
    """How many visual tokens of each row stay at each stage, in a batch of two."""
    rows, model = tiny.forms("qwen")["left padding"], tiny.model("qwen", "sdpa")
    with foveate.prune(model, method) as pruned:
        model.generate(**tiny.batch(*rows), max_new_tokens=2)
    return [[len(row) for row in stage.kept] for stage in pruned.trace.stages]


@pytest.mark.parametrize("keep", [5, 0.5, foveate.Share(0.9)])
def test_the_example_of_a_method_prunes(loudest, keep):
    (stage,) = kept_by(loudest(keep=keep))
    assert stage == [5] * 2 if keep == 5 else all(count > 0 for count in stage)


def test_a_mask_alone_is_an_answer_too(loudest):
    class Every(loudest):
        def decide(self, view):
            return view.visual & (view.position % 2 == 0)

    (stage,) = kept_by(Every())
    assert all(count > 0 for count in stage)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_options_that_the_readme_shows_exist():
    for command, rest in re.findall(r"^foveate (\w+)(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in shown, f"{command} {option}"
