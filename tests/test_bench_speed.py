"""The speed bench runs from end to end on a tiny model, goes on where it stopped, and fills its page."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bench_speed
import profile_speed
import speed_tables


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
    assert rows[:5] == ["", "---", "dense", "himap", "visipruner"] and "aimed at" in rows
    assert page.startswith("above\n") and page.endswith("below\n") and "old" not in page
    assert "round 1" in out
    again, same = run("--methods", "himap,visipruner")
    assert same == page and "round" not in again.replace("rounds", "")


def test_a_run_with_other_settings_is_refused(run):
    run("--methods", "vtw")
    with pytest.raises(ValueError, match="other methods"):
        run("--methods", "fastv")


def measured(**times):
    row = {"dense": 10.0, "himap ideal": 5.0, "himap whole": 5.2, "himap": 5.1, "himap scoring": 0.1} | times
    memory = {"dense": {"peak": 100}, "himap": {"peak": 65}}
    steps = {"dense": [0.1, 0.1], "himap": [0.09, 0.08]}
    return speed_tables.Measured("150m-576-1", "", 576, ["himap"], [row, row], steps, memory)


@pytest.mark.parametrize(
    ("times", "missed"),
    (
        ({}, []),
        ({"himap whole": 5.3}, ["missed: himap"]),  # 94 % of the ideal saving
        ({"himap scoring": 0.21}, ["missed: himap"]),
    ),
)
def test_a_target_that_is_missed_is_said_to_be(times, missed):
    rows = list(speed_tables.targets([measured(**times)]))
    assert [verdict for *_, verdict in rows if verdict != "met"] == missed
    assert rows[0][1] == ("himap 94.0%" if "himap whole" in times else "himap 96.0%")


def test_the_peak_and_the_steps_of_decode_have_to_be_below_dense():
    cell = measured()
    cell.memory["himap"]["peak"], cell.decode["himap"][:] = 101, [0.11, 0.12]
    said = [verdict for *_, verdict in speed_tables.targets([cell])]
    assert said == ["met", "met", "missed: 150m-576-1", "missed: 150m-576-1"]


@pytest.mark.parametrize("name", ("7b", "7b-576", "7b-577-1", "8b-576-1"))
def test_a_cell_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="is no cell"):
        bench_speed.Cell.of(name)


class Event:
    """Stands for a CUDA event: its times are in milliseconds, here of a clock a thousand times too fast."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e6 * (other.at - self.at)


def test_on_a_gpu_the_bench_times_by_events_and_asks_the_device_for_its_memory(run, monkeypatch):
    """A rehearsal: what the bench asks of CUDA is played by the test, and the model stays on the CPU."""
    waited, peaks = [], iter(range(100, 200, 10))
    for name in ("random_llava", "prompt"):
        real = getattr(bench_speed, name)
        monkeypatch.setattr(bench_speed, name, lambda cell, device, *more, real=real: real(cell, "cpu", *more))
    for name, value in {
        "Event": Event,
        "synchronize": lambda: waited.append(1),
        "get_device_name": lambda: "NVIDIA Rehearsal",
        "reset_peak_memory_stats": lambda: waited.append(2),
        "memory_allocated": lambda: 2**20 * 50,
        "max_memory_allocated": lambda: 2**20 * next(peaks),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    page = run("--methods", "vtw", "--device", "cuda")[1]
    assert "device NVIDIA Rehearsal" in page and "threads" not in page.splitlines()[-3]
    dense, vtw = (line.split("|") for line in page.splitlines() if line.startswith(("| dense", "| vtw")))
    assert 10 < float(dense[2].removesuffix(" s ")) < 10_000  # tens of milliseconds, by those events
    assert dense[10].strip() == "50 MiB" and vtw[10].strip() == "60 MiB" and vtw[11].strip() == "+20%"
    assert waited.count(2) == 2 and waited.count(1) > 2 * 3 * 2


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


def test_the_profile_runs_and_fills_its_page(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- profile: begin -->\nold\n<!-- profile: end -->\nbelow\n")
    command = ["profile_speed.py", "--cell", "tiny-576-1", "--rounds", "1", "--page", str(page)]
    monkeypatch.setattr(sys, "argv", command)
    profile_speed.main()
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert "matrix products" in text and "shallow layers" in text and "| himap | 1 in engine.py" in text
    saved = next(line for line in text.splitlines() if line.startswith("| vtw |") and "MiB" in line)
    # 775 columns in 32 layers, and in 16 of them 576 fewer; 2 x 64 values of two bytes each
    assert "4 of 6 MiB" in saved and "71 and 71" in saved
