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


def test_the_example_of_a_method_prunes():

    code = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert code is not None
    names = {"__name__": "example"}
    exec(compile(code[1], "CONTRIBUTING.md", "exec"), names)
    rows = tiny.forms("llava-mha")["one"]
    model = tiny.model("llava-mha", "sdpa")
    with foveate.prune(model, names["Loudest"](keep=5)) as pruned:
        model.generate(**tiny.batch(*rows), max_new_tokens=2)
    assert [len(stage.kept[0]) for stage in pruned.trace.stages] == [5]


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
