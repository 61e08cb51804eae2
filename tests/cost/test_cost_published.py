"""The papers' formulas give the papers' figures, or the table says why not."""

import math
from pathlib import Path

import pytest
import transformers as T

from foveate import cost

SMALL = cost.PaperShape(layers=32, hidden=4096, ffn_width=11008)  # LLaVA-1.5-7B
LARGE = cost.PaperShape(layers=40, hidden=5120, ffn_width=13824)  # LLaVA-1.5-13B
MOBILE = cost.PaperShape(layers=32, hidden=2560, ffn_width=6912)  # MobileVLM-v2-3B
QWEN_AS_PRINTED = cost.PaperShape(layers=32, hidden=4096, ffn_width=22016)


@pytest.mark.parametrize(
    ("shape", "schedule", "tera"),
    [
        (SMALL, [], 2.986076),
        (SMALL, [(2, 288)], 1.565969),
        (SMALL, [(2, 288), (8, 72)], 0.735308),
        (SMALL, [(2, 288), (15, 72)], 0.977584),
        (LARGE, [], 5.813305),
        (LARGE, [(3, 288)], 3.093226),
        (LARGE, [(2, 288), (8, 72)], 1.291007),
        (LARGE, [(3, 288), (8, 72)], 1.364522),
        (LARGE, [(2, 288), (15, 72)], 1.669161),
    ],
)
def test_himap_and_fastv_values_come_out_to_all_digits(shape, schedule, tera):
    assert round(cost.published(shape, 576, schedule) / 1e12, 6) == tera


@pytest.mark.parametrize(("shape", "visual", "tera"), [(SMALL, 576, 3.817), (LARGE, 576, 7.444), (MOBILE, 144, 0.369)])
def test_visipruner_dense_values_come_out(shape, visual, tera):
    assert round(cost.published(shape, visual, formula="visipruner") / 1e12, 3) == tera


def test_vtw_values_come_out_within_one_percent():
    dense, pruned = (cost.published(SMALL, 576, s, "vtw", text=62) / 1e12 for s in ([], [(16, 0)]))

    assert dense == pytest.approx(8.48, rel=0.001)
    assert pruned == pytest.approx(4.68, rel=0.01)


@pytest.mark.parametrize(("schedule", "printed"), [([], 3.6), ([(2, 224)], 1.9), ([(2, 224), (8, 56)], 0.89)])
def test_qwens_printed_values_need_448_tokens_and_twice_the_ffn(schedule, printed):
    assert cost.published(QWEN_AS_PRINTED, 448, schedule) / 1e12 == pytest.approx(printed, abs=0.005)


def test_qwens_printed_value_is_2_76_times_its_formula():
    real = cost.PaperShape(layers=32, hidden=4096, ffn_width=11008)

    assert round(cost.published(QWEN_AS_PRINTED, 448) / cost.published(real, 256), 2) == 2.76


def test_fastvs_printed_ratio_is_that_of_layer_3():
    ratio = {k: cost.published(SMALL, 576, [(k, 288)]) / cost.published(SMALL, 576) for k in (2, 3)}

    assert round(ratio[2], 3) == 0.524
    assert round(ratio[3], 2) == 0.54


@pytest.mark.parametrize(("text", "left"), [(40, 0.33), (97, 0.38), (135, 0.41)])
def test_himap_leaves_a_third_or_more_once_everything_is_counted(text, left):
    comparison = cost.compare(T.LlavaConfig(), 576, [(2, 288), (8, 72)], text=text)

    assert round(comparison.prefill_ratio, 2) == left
    assert round(comparison.published_ratio, 2) == 0.25


def test_every_printed_figure_is_computed_or_explained():
    for figure in cost.published_table():
        truncated = math.floor(figure.computed * 100) / 100
        agrees = figure.value in (truncated, round(figure.computed, 2), round(figure.computed, 1))
        assert agrees or figure.note, figure


def test_exact_figures_of_the_table_are_those_of_the_real_config():
    exact = {(f.model, f.method): f.exact for f in cost.published_table()}
    config = T.LlavaConfig(text_config=T.LlamaConfig(vocab_size=32064))  # as on the Hub, padded

    assert exact["LLaVA-1.5-7B", "dense"] == cost.prefill(config, [673] * 32).total / 1e12
    assert exact["QwenVL-7B", "dense"] is None


def test_a_config_and_its_paper_shape_give_the_same():
    assert cost.published(T.LlavaConfig(), 576, [(2, 288)]) == cost.published(SMALL, 576, [(2, 288)])


def test_an_unknown_formula_is_refused_by_name():
    with pytest.raises(ValueError, match="himap, visipruner, vtw"):
        cost.published(SMALL, 576, formula="fastv")


def test_tables_have_a_cell_for_every_column():
    comparison = cost.compare(T.LlavaConfig(), 576, [(2, 288)], text=97, scored={1: 1}, new_tokens=20)
    for rows in (cost.comparison_rows(comparison), cost.published_rows(cost.published_table())):
        assert {len(row) for row in rows} == {len(rows[0])}
        assert len(cost.markdown(rows).splitlines()) == len(rows) + 1


def test_the_docs_show_the_table_as_it_is():
    docs = (Path(__file__).parents[2] / "docs" / "cost.md").read_text()

    assert cost.markdown(cost.published_rows(cost.published_table())) in docs
