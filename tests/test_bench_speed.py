"""The speed bench runs from end to end on a tiny model, goes on where it stopped, and fills its page."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bench_speed
import profile_speed


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nbelow\n")

    def call(*arguments):
        command = ["bench_speed.py", "--cells", "tiny-576-1", "--rounds", "2", "--tokens", "2", "-o", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*command, "--page", str(page), *arguments])
        bench_speed.main()
        return capsys.readouterr().out, page.read_text()

    return call


def test_every_method_has_its_row_and_a_second_run_measures_nothing(run):
    out, page = run("--methods", "himap,visipruner")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "dense", "himap", "visipruner"]
    assert page.startswith("above\n") and page.endswith("below\n") and "old" not in page
    assert "round 1" in out
    again, same = run("--methods", "himap,visipruner")
    assert same == page and "round" not in again.replace("rounds", "")


def test_a_run_with_other_settings_is_refused(run):
    run("--methods", "vtw")
    with pytest.raises(ValueError, match="other methods"):
        run("--methods", "fastv")


@pytest.mark.parametrize("name", ("7b", "7b-576", "7b-577-1", "8b-576-1"))
def test_a_cell_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="is no cell"):
        bench_speed.Cell.of(name)


def test_the_ideal_has_as_many_tokens_in_every_layer_as_the_method():
    cell = bench_speed.Cell.of("tiny-576-1")
    model, inputs = bench_speed.random_llava(cell, "cpu", "sdpa"), bench_speed.prompt(cell, "cpu")
    with torch.no_grad():
        for name, method in cell.methods().items():
            with bench_speed.ideal(model, method.schedule(cell.layers, cell.visual)):
                ideal = model(**inputs, use_cache=True).past_key_values
            with bench_speed.foveate.prune(model, method):
                pruned = model(**inputs, use_cache=True).past_key_values
            lengths = [[layer.get_seq_length() for layer in cache.layers] for cache in (ideal, pruned)]
            assert lengths[0] == lengths[1], name


def test_the_profile_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile_speed.py", "--cell", "tiny-576-1", "--rounds", "1"])
    profile_speed.main()
    out = capsys.readouterr().out
    assert "matrix products" in out and "shallow layers" in out and "| himap | 1 in engine.py" in out
