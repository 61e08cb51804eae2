"""`foveate calibrate` as a user meets it: a policy that prune takes, figures beside it, and errors in one line."""

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

import foveate
from checkpoints import load_lively
from foveate.ask import load
from foveate.calibration.calibrate import budget_of
from foveate.calibration.data import sets_of
from foveate.calibration.request import Request
from foveate.calibration.trials import Trials, name_of, share
from foveate.cli import app
from foveate.policy import Figure, Policy
from foveate.policy.guard import Guarded
from foveate.report.calibration import words as words_of
from foveate.suite.journal import Journal
from foveate.suite.tasks import draw

QUICK = ["--tasks", "existence,count", "--limit", "6", "--quoted", "5", "--trials", "3", "--batch", "4"]
CHEAP = ["--flops", "0.6", "--methods", "fastv,schedule"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("llava")
    model, _ = load_lively(place)
    model.save_pretrained(place)
    return str(place)


def calibrate(*words):
    return CliRunner().invoke(app, ["calibrate", *words], env={"COLUMNS": "200"})


def refused(*words) -> str:
    result = calibrate(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()  # a progress bar that was begun leaves an empty line
    assert line.startswith("foveate: ")
    return line


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "policy.json"
    result = calibrate(folder, *QUICK, *CHEAP, "-o", str(out))
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_it_writes_a_policy_and_its_figures(made, folder):
    out, told = made
    policy = Policy.load(out)
    entry = policy.entry
    assert entry.budget == {"flops": 0.6} and entry.data["searched"] == 12 and entry.data["quoted"] == 10
    assert entry.measured.samples == 10 and entry.measured.flops.mean < 0.62
    assert entry.measured.speed is not None
    for words in ("one for all", "fastv, published", "visipruner, published", "VTW's own search"):
        assert words in told
    run = out.with_name("policy-run")
    assert Image.open(run / "pareto.png").width > 800
    figures = json.loads((run / "calibration.json").read_text())
    assert figures["policy"]["entries"].keys() == policy.entries.keys()
    assert "| one for all |" in (run / "calibration.md").read_text()


def test_the_policy_prunes_its_model_and_no_other(made, folder, tmp_path):
    model = load(folder, None, "auto", "cpu")[0]
    foveate.prune(model, made[0]).remove()
    other, _ = load_lively(tmp_path)
    other.get_output_embeddings().weight.data.neg_()
    with pytest.raises(ValueError, match="another weights"):
        foveate.prune(other, made[0])


def test_ask_takes_the_policy(made, folder, tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (48, 48), "red").save(picture)
    ask = ["ask", str(picture), "is there a red circle", "--model", folder, "--runs", "1", "--json"]
    result = CliRunner().invoke(app, [*ask, "--method", str(made[0])])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["method"]["name"] == Policy.load(made[0]).asked("is there").entry.method.name
    wrong = CliRunner().invoke(app, [*ask, "--method", str(made[0]), "--set", "keep=0.5"])
    assert wrong.exit_code == 2 and "--set is for methods" in wrong.stderr
    share = CliRunner().invoke(app, [*ask, "--method", "fastv", "--set", "keep=share=0.9"])
    assert json.loads(share.stdout)["method"]["keep"] == "share=0.9"


def test_given_again_it_runs_nothing_twice(made, folder, monkeypatch):
    before = Policy.load(made[0])
    monkeypatch.setattr("foveate.calibration.trials.Asked", None)  # whoever runs a trial fails
    result = calibrate(folder, *QUICK, *CHEAP, "-o", str(made[0]))
    assert result.exit_code == 0, result.output
    assert {k: e.method for k, e in Policy.load(made[0]).entries.items()} == {
        k: e.method for k, e in before.entries.items()
    }


def test_kinds_of_question_get_entries_of_their_own_within_one_budget(folder, tmp_path):
    out = tmp_path / "p.json"
    words = [
        "--tasks",
        "existence,count",
        "--limit",
        "12",
        "--quoted",
        "6",
        "--trials",
        "4",
        "--methods",
        "fastv,schedule",
    ]
    result = calibrate(folder, *words, "--flops", "0.6", "-o", str(out))
    assert result.exit_code == 0, result.output
    policy = Policy.load(out)
    assert policy.entries.keys() == {"count", "yes-no", "default"}
    assert policy.asked("is there a dog?").chosen == "yes-no" and policy.asked("how many cats?").chosen == "count"
    told = json.loads((tmp_path / "p-run" / "calibration.json").read_text())
    mixed, *others = told["points"]
    assert mixed["name"] == "by kind" and others[0]["name"] == "one for all"
    assert mixed["measured"]["samples"] == 12 and mixed["measured"]["flops"][0] < 0.63
    speeds = [entry.measured.speed for kind, entry in policy.entries.items() if kind != "default"]
    assert min(s.mean for s in speeds) <= mixed["measured"]["speed"][0] <= max(s.mean for s in speeds)
    agreements = [policy.entries[kind].measured.agreement.mean for kind in ("count", "yes-no")]
    assert sum(agreements) / 2 == pytest.approx(mixed["measured"]["agreement"][0])


def test_a_guard_is_set_on_samples_of_its_own(folder, tmp_path):
    out = tmp_path / "p.json"
    words = ["--keep", "0.7", "--methods", "fastv", "--guard", "0.3", "--guarded", "20", "--no-by-kind"]
    result = calibrate(folder, *QUICK, *words, "-o", str(out))
    assert result.exit_code == 0, result.output
    entry = Policy.load(out).entry
    assert entry.data["guarded"] == 40
    if entry.guard is not None:
        assert entry.guard.samples == 40 and entry.guard.alpha == 0.3
        with foveate.prune(load(folder, None, "auto", "cpu")[0], out) as pruned:
            assert isinstance(pruned, Guarded)


def test_a_constraint_alone_finds_the_cheapest_that_fulfils_it(folder, tmp_path):
    out = tmp_path / "p.json"
    result = calibrate(folder, *QUICK, "--agreement", "0.5", "--methods", "fastv", "--no-by-kind", "-o", str(out))
    assert result.exit_code == 0, result.output
    tried = json.loads((tmp_path / "p-run" / "calibration.json").read_text())["tried"]
    best = min(one["cost"] for one in tried if one["agreement"] >= 0.5)
    chosen = Policy.load(out).entry.method
    assert any(one["cost"] == best and f"layer={chosen.layer}" in one["method"] for one in tried)


def test_of_two_constraints_both_are_fulfilled(folder, tmp_path):
    out = tmp_path / "p.json"
    words = ["--max-kl", "0.5", "--agreement", "0.2", "--keep", "0.9", "--methods", "fastv,vtw", "--no-by-kind"]
    result = calibrate(folder, *QUICK, *words, "-o", str(out))
    assert result.exit_code == 0, result.output
    tried = json.loads((tmp_path / "p-run" / "calibration.json").read_text())["tried"]
    fulfil = [one for one in tried if one["agreement"] >= 0.2 and one["kl"] <= 0.5 and one["cost"] <= 0.9]
    best = min(fulfil, key=lambda one: one["cost"])
    assert best["kl"] > 0 and best["method"] == words_of(Policy.load(out).entry.method)
    assert Policy.load(out).entry.budget == {"keep": 0.9, "max_kl": 0.5, "agreement": 0.2}


def test_a_speedup_becomes_flops_by_the_time_of_a_few_shares(folder, tmp_path, monkeypatch):
    model, processor = load(folder, None, "auto", "cpu")
    samples = draw(["existence"], 2, 0)
    trials = Trials(model, processor, samples, Journal(tmp_path / "t.jsonl", {}), 2, lambda sample: "default")

    def timed(trials_, methods, advance):  # a machine whose prompts take 20 % and 80 % of the FLOPs' share
        shares = {name_of(m): share(trials_.run(m), trials_.run(None)) for m in methods}
        return {name: Figure(1 / (0.2 + 0.8 * part), 1.0, 1.0) for name, part in shares.items()}

    monkeypatch.setattr("foveate.calibration.calibrate.timed", timed)
    for speedup in (1.25, 1.6):
        budget = budget_of(model, Request("m", "speedup", speedup), trials)
        assert budget.kind == "flops" and budget.target == pytest.approx((1 / speedup - 0.2) / 0.8)
    with pytest.raises(ValueError, match="out of reach"):
        budget_of(model, Request("m", "speedup", 4.9), trials)


def test_questions_of_ones_own_are_shared_out(tmp_path, folder):
    place = tmp_path / "mine"
    place.mkdir()
    Image.new("RGB", (48, 48), "red").save(place / "a.png")
    rows = [{"image": "a.png", "question": f"is it {i}?", "answer": "yes", "task": "t"} for i in range(40)]
    (place / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = sets_of(str(place), (), (20, 10, 30), 0)
    sizes = [len(part) for part in (sets.searched, sets.quoted, sets.guarded)]
    assert sizes == [13, 6, 20]
    names = [sample.name for part in (sets.searched, sets.quoted, sets.guarded) for sample in part]
    assert len(set(names)) == len(names)


def test_sets_of_the_suite_are_of_different_scenes():
    sets = sets_of("suite", ("existence", "colour"), (6, 6, 6), 1)
    scenes = [{s.picture.args[0] for s in part} for part in (sets.searched, sets.quoted, sets.guarded)]
    assert not (scenes[0] & scenes[1] or scenes[0] & scenes[2] or scenes[1] & scenes[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one budget"),
        (["--flops", "0.3", "--keep", "0.3"], "give one budget"),
        (["--flops", "35"], "--flops 35 is no share"),
        (["--keep", "0"], "--keep 0 is no share"),
        (["--speedup", "1"], "--speedup 1 is no speedup"),
        (["--flops", "nan"], "--flops nan is no share"),
        (["--flops", "0.3", "--agreement", "99"], "--agreement 99 is out of range"),
        (["--flops", "0.3", "--max-kl", "-1"], "--max-kl -1 is out of range"),
        (["--flops", "0.3", "--guard", "0"], "--guard 0 is out of range"),
        (["--flops", "0.3", "--guard", "0.01", "--guarded", "9"], "takes 368 samples at the least, and there are 18"),
        (["--flops", "0.3", "--confidence", "1"], "certainty"),
        (["--flops", "0.3", "--methods", "magic"], "no method 'magic'"),
        (["--flops", "0.3", "-o", "policy.yaml"], "ends in .json"),
        (["--flops", "0.3", "--data", "no/such"], "no folder"),
        (["--flops", "0.02", "--methods", "fastv"], "nothing that was tried costs 2.0%"),
        (["--flops", "0.6", "--agreement", "1.0", "--max-kl", "1e-9", "--methods", "fastv"], "best agreement is"),
        (["--speedup", "900"], "out of reach"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, message, folder, tmp_path):
    out = [] if "-o" in words else ["-o", str(tmp_path / "p.json")]
    assert re.search(message, refused(folder, *QUICK, "--no-by-kind", *words, *out))


def test_another_run_in_the_same_place_is_refused(made, folder):
    assert "another folder with -o" in refused(
        folder, *QUICK[:2], "--limit", "7", *QUICK[4:], *CHEAP, "-o", str(made[0])
    )


def test_without_optuna_the_extra_is_named(folder, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'foveate[calibrate]'" in refused(folder, *QUICK, *CHEAP, "-o", str(tmp_path / "p.json"))
