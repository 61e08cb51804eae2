"""Answers, fidelity and costs of real runs, on a tiny random checkpoint with a processor."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import foveate
import tiny
from checkpoints import save_llava
from foveate import ask, cost
from foveate.methods import VTW, FastV, HiMAP, Random, Uniform, VisiPruner
from foveate.suite import runner
from foveate.suite.journal import Journal
from foveate.suite.runner import Setting, run
from foveate.suite.tasks import draw
from foveate.suite.timing import measure

DENSE = Setting("dense", "dense", "dense", None)
METHODS = (FastV(), HiMAP(layer2=4), VTW(layer=3), VisiPruner(shallow=1), Random(), Uniform())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return ask.load(save_llava(tmp_path_factory.mktemp("llava")), None, "float32", "cpu")


@pytest.fixture(scope="module")
def samples():
    return draw(("existence", "read"), 3, 0)


def ran(loaded, samples, settings, path, batch=2):
    journal = Journal(path / "answers.jsonl", {})
    told = []
    run(*loaded, samples, settings, journal, batch, told.append)
    assert sum(told) == len(samples) * len(settings)
    return journal


def test_answers_are_those_of_asking_alone_and_fidelity_is_that_of_the_logits(loaded, samples, tmp_path):
    model, processor = loaded
    setting = Setting("fastv", "fastv", "50%", FastV(layer=2, keep=0.25))
    journal = ran(loaded, samples, (DENSE, setting), tmp_path, batch=3)
    for sample in samples:
        inputs = ask.prepare(processor, sample.picture(), sample.question)
        dense = torch.log_softmax(ask.generate(model, inputs, 1, output_logits=True).logits[0][0], -1)
        with foveate.prune(model, setting.method) as pruned:
            said = ask.answer(model, processor, inputs, sample.longest)
            first = torch.log_softmax(ask.generate(model, inputs, 1, output_logits=True).logits[0][0], -1)
        record = journal.answers["fastv", sample.name]
        assert record["answer"] == said
        assert record["kl"] == pytest.approx(float((dense.exp() * (dense - first)).sum()), abs=1e-4)
        assert record["top1"] == bool(dense.argmax() == first.argmax())
        whole = cost.prefill(model.config, pruned.trace.tokens, images=1)
        assert record["flops"] == pruned.trace.flops + whole.vision + whole.projector
        assert record["visual"] == pytest.approx((2 + 4 * 0.25) / 6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_flops_of_a_sample_are_those_of_its_trace(loaded, samples, method):
    model, processor = loaded
    item = runner.item_of(model, processor, samples[0])
    (output,) = runner.answer(model, processor, [item], method, {})
    with foveate.prune(model, method) as pruned:
        ask.generate(model, item.inputs, 1)
    tower = cost.prefill(model.config, pruned.trace.tokens, images=1)
    assert output.flops == pruned.trace.flops + tower.vision + tower.projector


def test_an_architecture_without_a_cost_model_is_run_all_the_same(loaded, samples, tmp_path, monkeypatch):
    def unknown(config, inputs):
        raise NotImplementedError("unknown tower")

    monkeypatch.setattr(runner.cost, "images_of", unknown)
    journal = ran(loaded, samples[:1], (DENSE, Setting("vtw", "vtw", "", VTW(layer=3))), tmp_path)
    record = journal.answers["vtw", samples[0].name]
    assert record["flops"] is None and record["visual"] == 0.5 and "answer" in record


def test_keeping_everything_is_the_dense_model(loaded, samples, tmp_path):
    journal = ran(loaded, samples, (DENSE, Setting("all", "uniform", "", Uniform(keep=1.0))), tmp_path)
    for sample in samples:
        dense, kept = (journal.answers[name, sample.name] for name in ("dense", "all"))
        assert kept["kl"] == 0 and kept["top1"] and kept["same"] and kept["visual"] == 1
        assert kept["flops"] == dense["flops"] and kept["answer"] == dense["answer"]


def test_pictures_are_encoded_once_for_all_settings(loaded, samples, tmp_path, monkeypatch):
    model, calls = loaded[0], []
    tower = model.base_model.vision_tower
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    ran(loaded, samples, (DENSE, *(Setting(m.name, m.name, "", m) for m in METHODS)), tmp_path)
    handle.remove()
    assert len(calls) == 4  # batches: two tasks of three samples, by twos
    assert "get_image_features" not in vars(model.base_model)


def test_a_sample_that_fails_is_recorded_and_the_others_are_answered(loaded, samples, tmp_path):
    def broken():
        raise ValueError("cannot read the picture")

    bad = replace(samples[1], picture=broken)
    whole = ran(loaded, samples, (DENSE,), tmp_path / "whole", batch=3)
    journal = ran(loaded, [samples[0], bad, *samples[2:]], (DENSE,), tmp_path / "bad", batch=3)
    record = journal.answers["dense", bad.name]
    assert record["error"] == "ValueError: cannot read the picture" and "answer" not in record
    for sample in (samples[0], *samples[2:]):
        assert journal.answers["dense", sample.name]["answer"] == whole.answers["dense", sample.name]["answer"]


def test_a_batch_that_fails_is_run_sample_by_sample(loaded, samples, tmp_path, monkeypatch):
    generate = runner.generate

    def full(model, inputs, *args, **settings):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(model, inputs, *args, **settings)

    alone = ran(loaded, samples, (DENSE,), tmp_path / "alone", batch=1)
    monkeypatch.setattr(runner, "generate", full)
    assert ran(loaded, samples, (DENSE,), tmp_path / "full", batch=3).answers == alone.answers


def test_a_method_that_fails_leaves_the_model_and_the_others_alone(loaded, samples, tmp_path):
    class Broken(FastV):
        def decide(self, view):
            raise RuntimeError("no decision")

    settings = (DENSE, Setting("broken", "broken", "", Broken()), Setting("vtw", "vtw", "", VTW(layer=3)))
    journal = ran(loaded, samples, settings, tmp_path)
    for sample in samples:
        assert journal.answers["broken", sample.name]["error"] == "RuntimeError: no decision"
        assert "kl" in journal.answers["vtw", sample.name]


def test_random_draws_anew_for_every_batch():
    first, second = runner.fresh(Random(seed=5), 0), runner.fresh(Random(seed=5), 1)
    assert (first.seed, second.seed) == (5, 6) and runner.fresh(FastV(), 3) == FastV()


def test_pictures_of_different_shapes_are_no_batch():
    row = {"input_ids": torch.ones(1, 3, dtype=torch.long), "pixel_values": torch.ones(1, 3, 4, 4)}
    wide = {**row, "pixel_values": torch.ones(1, 3, 4, 6)}
    with pytest.raises(ValueError, match="different shapes"):
        runner.collate([row, wide], 0)
    longer = {**row, "input_ids": torch.ones(1, 5, dtype=torch.long)}
    assert runner.collate([row, longer], 9)["input_ids"].tolist() == [[9, 9, 1, 1, 1], [1] * 5]


def test_timed_rounds_have_every_setting_and_pruning_takes_less_memory(loaded, samples, tmp_path):
    model, processor = loaded
    items = [runner.item_of(model, processor, sample) for sample in samples[:2]]
    settings = (DENSE, Setting("vtw", "vtw", "", VTW(layer=1)))
    journal = Journal(tmp_path / "answers.jsonl", {})
    measure(model, items, settings, journal, 1, lambda _: None)
    measure(model, items, settings, journal, 2, lambda _: None)  # goes on after the first
    assert len(journal.rounds) == 2
    for found in journal.rounds:
        assert {name: len(pairs) for name, pairs in found["seconds"].items()} == {"dense": 2, "vtw": 2}
    dense, vtw = journal.memory["dense"], journal.memory["vtw"]
    assert vtw["cache_bytes"] < dense["cache_bytes"] < dense["peak_bytes"]
    assert vtw["peak_bytes"] < dense["peak_bytes"]


class Numbers:
    """A processor that only writes token ids out."""

    tokenizer = SimpleNamespace(pad_token_id=tiny.PAD, eos_token_id=None)

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(map(str, row.tolist())) for row in rows]


def test_pictures_of_many_sizes_are_batched_for_a_model_that_takes_them(samples):
    model = tiny.model("qwen", "sdpa")
    rows = [tiny.row("qwen", (2, 3), text=6, seed=1), tiny.row("qwen", (4, 2), text=3, seed=2)]
    items = []
    for row, sample in zip(rows, samples, strict=False):
        inputs = tiny.batch(row)
        images = cost.images_of(model.config, inputs)
        items.append(runner.Item(sample, inputs, images, len(row.ids), len(row.visual), row.visual[0]))
    for method in (None, HiMAP(layer2=4)):
        features: dict = {}
        both = runner.answer(model, Numbers(), items, method, features, longest=4)
        assert len(features) == 1  # found by the function that this family encodes pictures with
        for item, output in zip(items, both, strict=True):
            (alone,) = runner.answer(model, Numbers(), [item], method, {}, longest=4)
            assert (output.answer, output.flops, output.visual) == (alone.answer, alone.flops, alone.visual)
            assert torch.allclose(output.first, alone.first, atol=1e-4)
