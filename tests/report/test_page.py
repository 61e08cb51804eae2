"""`foveate profile` on a tiny checkpoint: what it writes, that it goes on after a stop, and its page in a browser."""

import copy
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoints
from foveate import ask
from foveate import profile as job
from foveate.flow.claims import CONFIRMED, OPEN, REFUTED, Claim, claims
from foveate.flow.result import Result
from foveate.flow.stages import first, from_here_on, stages
from foveate.report.charts import Chart, Line, linear_ticks, log_ticks
from foveate.report.page import stage_bar
from foveate.suite.tasks import Sample
from report.browser import ARROW_RIGHT, TAB, Browser, missing

SAID = "{% for m in messages %}{% if m['role'] == 'user' %}USER: <image> {{ m['content'][1]['text'] }} ASSISTANT:" + (
    "{% else %} {{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
)


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST)


def questions() -> list[Sample]:
    words = ("is there a red circle", "is a circle red", "there is a circle")
    return [
        Sample(task, i, words[i % 3], (("yes", "no")[i % 2],), ("vqa",), None, lambda i=i: picture(i))
        for task in ("a</script>", "b")
        for i in range(5)
    ]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = checkpoints.save_llava(tmp_path_factory.mktemp("checkpoint"))
    model, processor = ask.load(folder, None, "float32", "cpu")
    processor.chat_template = SAID
    return model, processor


@pytest.fixture(scope="module")
def made(loaded, tmp_path_factory):
    """(folder, profile.json) of a whole run."""
    place = tmp_path_factory.mktemp("profile")
    return place, job.profile(*loaded, "tiny <model>", questions(), place, batch=3, deep=2)


def test_a_profile_holds_every_analysis_its_stages_and_claims(made):
    place, profile = made
    assert json.loads((place / "profile.json").read_text()) == profile
    assert set(profile["curves"]) == {*job.CHEAP, *job.COSTLY}
    assert profile["tasks"] == {"a</script>": 5, "b": 5} and profile["layers"] == checkpoints.LAYERS
    assert len(profile["stages"]) == 4 and len(profile["claims"]) == 13
    whole = Result.load(place / "withdrawal.npz")
    assert len(whole) == 10 and len(Result.load(place / "knockout.npz")) == 6  # a first batch of 3 for each task
    assert profile["settings"]["deep"] == 3 and "use up to 3 questions" in (place / "page.html").read_text()
    np.testing.assert_allclose(profile["curves"]["withdrawal"]["kl"]["mean"], whole.mean("kl"))
    curve = profile["curves"]["knockout"]["kl"]["lines"]["intra-visual"]
    assert len(curve["mean"]) == len(curve["low"]) == len(curve["high"]) == checkpoints.LAYERS


def test_a_run_that_was_stopped_goes_on_where_it_was(loaded, made, tmp_path, monkeypatch):
    calls, stop = [], len(job.CHEAP)

    def counted(analysis):
        def run(model, samples):
            calls.append(analysis)
            if len(calls) == stop + 1:
                raise KeyboardInterrupt
            return analysis(model, samples)

        return run

    monkeypatch.setattr(job, "CHEAP", {name: counted(analysis) for name, analysis in job.CHEAP.items()})
    with pytest.raises(KeyboardInterrupt):
        job.profile(*loaded, "tiny <model>", questions(), tmp_path, batch=3, deep=2)
    again = job.profile(*loaded, "tiny <model>", questions(), tmp_path, batch=3, deep=2)
    assert len(calls) == 4 * len(job.CHEAP) + 1  # four steps; only the interrupted analysis ran twice
    assert again["curves"] == made[1]["curves"]
    with pytest.raises(ValueError, match="choose another"):
        job.profile(*loaded, "tiny <model>", questions(), tmp_path, batch=3, deep=1)


def test_a_model_with_other_weights_does_not_go_on_with_the_steps_of_this_one(loaded, made):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    next(model.parameters()).data.add_(1)
    with pytest.raises(ValueError, match="another model"):
        job.profile(model, processor, "tiny <model>", questions(), made[0], batch=3, deep=2)


def test_tasks_of_the_suite_are_not_looked_for_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match="leave --tasks out"):
        job.samples_of(str(tmp_path), ["colour"], 1, 0)


def test_the_page_needs_nothing_but_itself(made):
    text = (made[0] / "page.html").read_text()
    found = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(value for name, value in attrs if name in ("src", "href"))

    Links().feed(text)
    assert all(link.startswith("data:") for link in found), found
    assert "{{" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "tiny &lt;model&gt;" in text and text.count("</script>") == 2


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def browser(request, tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with Browser(tmp_path_factory.mktemp("chromium"), dark=request.param) as session:
        yield session


OVERLAY = "return document.getElementById('view').toDataURL()"


def test_the_slider_moves_the_overlay_by_keyboard_alone(browser, made):
    browser.open((made[0] / "page.html").as_uri())
    before, at = browser.run(OVERLAY), int(browser.run("return document.getElementById('layer').value"))
    browser.type("#layer", ARROW_RIGHT)
    assert int(browser.run("return document.getElementById('at').textContent")) == at + 1
    assert browser.run(OVERLAY) != before
    browser.type("#layer", TAB)
    assert browser.run("return document.activeElement.name") == "measure"


def test_measure_method_and_picture_change_what_is_seen(browser, made):
    browser.open((made[0] / "page.html").as_uri())
    seen = {browser.run(OVERLAY)}
    for control in ("[name=measure][value=saliency]", "[name=measure][value=influence]", "[name=method][value=vtw]"):
        browser.run(f"document.querySelector('{control}').click(); document.getElementById('layer').value = 5;"
                    "document.getElementById('layer').dispatchEvent(new Event('input'))")  # fmt: skip
        seen.add(browser.run(OVERLAY))
    facts = browser.run("return document.getElementById('facts').textContent")
    assert "0 of 16" in facts and len(seen) == 4
    asked = browser.run("document.querySelectorAll('[name=sample]')[1].click();"
                        "return document.getElementById('said').textContent")  # fmt: skip
    assert asked == questions()[1].question


def test_no_error_is_logged_and_no_request_leaves_the_page(browser, made):
    browser.log("browser"), browser.requests()  # forget what came before
    url = (made[0] / "page.html").as_uri()
    browser.open(url)
    browser.type("#layer", ARROW_RIGHT * 3)
    browser.run("document.querySelector('.chart svg').dispatchEvent(new PointerEvent('pointermove', {clientX: 200}))")
    assert browser.log("browser") == []
    assert [link for link in browser.requests() if not link.startswith("data:")] == [url]


def test_the_page_in_the_docs_runs_without_an_error_or_a_request(browser):
    browser.log("browser"), browser.requests()
    url = (Path(__file__).parents[2] / "docs" / "finding" / "mini.html").as_uri()
    browser.open(url)
    before = browser.run(OVERLAY)
    browser.type("#layer", ARROW_RIGHT)
    assert browser.run(OVERLAY) != before
    assert browser.log("browser") == []
    assert [link for link in browser.requests() if not link.startswith("data:")] == [url]


def test_the_page_follows_the_colour_scheme(browser, made):
    browser.open((made[0] / "page.html").as_uri())
    dark = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
    assert brightness < 60 if dark else brightness > 200
    wide = browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert wide


def test_printed_the_page_is_white_and_says_what_is_shown(browser, made):
    browser.open((made[0] / "page.html").as_uri())
    browser.run("document.querySelector('[name=method][value=vtw]').click()")
    browser.devtools("Emulation.setEmulatedMedia", media="print")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = browser.run("return [...document.querySelectorAll('.choice label')].filter(l => l.checkVisibility())"
                        ".map(l => l.textContent.trim())")  # fmt: skip
    assert shown == ["attention", "vtw"]
    browser.devtools("Emulation.setEmulatedMedia", media="")


def test_on_a_narrow_screen_nothing_runs_out_of_the_page(browser, made):
    browser.open((made[0] / "page.html").as_uri())
    browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    assert browser.run("return document.documentElement.scrollWidth") == 390
    browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_the_words_of_a_stage_stand_where_there_is_room():
    def sides(low: int, layer: int, high: int) -> bool:
        names = ("fusion begins", "fusion ends", "vision can go")
        return 'class="left"' in stage_bar([{"name": n, "low": low, "layer": layer, "high": high} for n in names], 12)

    assert [sides(0, 0, 0), sides(5, 7, 9), sides(2, 3, 4), sides(12, 12, 12)] == [False, True, False, True]


def test_a_claim_is_decided_by_the_whole_of_its_interval():
    def verdict(low, high, above):
        return Claim("p", "t", "m", 0.0, low, high, 1.0, above).verdict

    assert verdict(1.1, 2.0, above=True) == CONFIRMED and verdict(0.1, 0.9, above=True) == REFUTED
    assert verdict(0.9, 1.1, above=True) == verdict(0.9, 1.1, above=False) == OPEN
    assert verdict(0.1, 0.9, above=False) == CONFIRMED and verdict(1.1, 2.0, above=False) == REFUTED
    assert verdict(float("nan"), float("nan"), above=True) == OPEN


def result(name: str, samples: int = 20, **values) -> Result:
    tiled = {key: np.tile(value, (samples, 1)) for key, value in values.items()}
    return Result(name, tiled, dict.fromkeys(tiled, ("layer",)), {"layer": list(range(8))}, [""] * samples)


def test_a_few_samples_that_all_agree_confirm_nothing():
    def verdict(samples: int, same: float) -> str:
        withdrawal = result("withdrawal", samples, kl=np.ones(8), same=np.full(8, same))
        return claims({"withdrawal": withdrawal}, visual=10)[-1].verdict

    assert verdict(20, 1.0) == OPEN and verdict(200, 1.0) == CONFIRMED and verdict(20, 0.0) == REFUTED


def test_stages_stand_where_their_rules_say():
    saliency = result("saliency", S_vt=[5, 3, 1, 1, 0, 0, 0, 0])
    windows = result("windows", first_kl=[0.0, 0.05, 0.3, 1, 2, 2, 2, 2])
    curve = [2, 2, 1, 0.1, 0.5, 0.15, 0.002, 0.001]
    withdrawal = result("withdrawal", kl=curve, same=np.linspace(0, 1, 8))
    found = {stage.name: stage for stage in stages(saliency, windows, withdrawal)}
    assert [stage.layer for stage in found.values()] == [2, 2, 5, 6]
    assert all(stage.low == stage.layer == stage.high for stage in found.values())
    never = stages(saliency, windows, result("withdrawal", kl=np.ones(8), same=np.ones(8)))[-1]
    assert never.layer == 8 and "in no layer" in never.figure


def test_layer_rules_work_on_any_leading_axes():
    holds = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool().numpy()
    assert first(holds).tolist() == [1, 5] and first(from_here_on(holds)).tolist() == [3, 5]


def test_axes_hold_every_value():
    for values in ([0.0], [-3.2, 7.0], [1e-9, 2e-9], [5.0]):
        ticks = linear_ticks(values)
        assert ticks[0] <= min(values) and ticks[-1] >= max(values) and 2 <= len(ticks) <= 8
    assert log_ticks([0.0, 0.002, 3.0]) == [0.001, 0.01, 0.1, 1.0, 10.0]
    nothing = Chart("t", "n", "u", [Line("x", [float("nan")], [float("nan")], [float("nan")])], log=True)
    assert "<svg" in nothing.html()
