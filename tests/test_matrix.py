"""Every method on every family in every mode is right, or refused with a remedy, as the page in the docs says."""

import json
import os

import pytest
import transformers
from packaging.version import Version

import foveate
import matrix
import tiny_families

TABLE = json.loads(matrix.TABLE.read_text())
OLD = Version(transformers.__version__) < Version("5.23")
SOME = ("llava", "qwen2.5-vl") if OLD else ("llava",)
# The rows on compiled models take up to a minute a cell: here on some families, and by ROWS=compiled on all others.
if os.environ.get("ROWS") == "compiled":
    CELLS = [(name, family) for name in matrix.SLOW for family in matrix.FAMILIES if family not in SOME]
else:
    CELLS = [(name, family) for name in matrix.MODES for family in (SOME if name in matrix.SLOW else matrix.FAMILIES)]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_every_cell_is_what_the_page_says(name, family):
    found, told = matrix.outcomes(name, family), TABLE[name][family]
    if (cannot(found) and OLD) or (found == "right" and cannot(told)):
        return  # an older transformers does less by itself, another machine more
    assert found == told


def cannot(found: str | dict[str, str]) -> bool:
    """Not even without pruning."""
    return isinstance(found, str) and found.startswith("native")


def test_the_page_shows_the_table():
    assert matrix.PAGE.read_text() == matrix.page(TABLE), "make matrix"
    assert [*TABLE] == [*matrix.MODES]


def test_every_refusal_says_what_to_do():
    """A remedy names something to set, to call, to leave, or to use instead."""
    texts = {
        text
        for row in TABLE.values()
        for found in row.values()
        for text in ([found] if isinstance(found, str) else found.values())
        if text.startswith("refused")
    }
    assert len(texts) > 8
    for text in texts:
        assert any(
            word in text for word in ("set ", "use ", "call ", "leave ", "put ", "pad ", "compute ", "generate ")
        )


@pytest.mark.parametrize("family", [name for name in tiny_families.FAMILIES if name not in matrix.FAMILIES])
@pytest.mark.parametrize("method", matrix.METHODS)
def test_the_same_classes_with_other_parts_are_right_too(family, method):
    for name in ("one picture", "eager attention", "batch of 2, 1 and 0 pictures", "pictures of other sizes, crops"):
        assert matrix.outcome(family, name, method) in ("right", "absent")


def test_a_model_with_cross_attention_is_refused_at_once():
    model = transformers.MllamaForConditionalGeneration(tiny_families.mllama())
    with pytest.raises(NotImplementedError, match=r"cross-attention.*such as LLaVA"):
        foveate.prune(model, foveate.FastV(layer=1))


def test_a_prompt_beyond_a_sliding_window_is_refused():
    config = tiny_families.deeper(tiny_families.gemma3(window=16))
    model = transformers.AutoModelForImageTextToText.from_config(config)
    inputs = tiny_families.batch("gemma3", matrix.ONE)
    with (
        foveate.prune(model, matrix.METHODS["fastv"]),
        pytest.raises(NotImplementedError, match="sliding window of 16"),
    ):
        model(**inputs)
