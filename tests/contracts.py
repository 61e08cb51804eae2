"""What the contract tests share: the methods of the matrix, the reference's rule for each, how a run is compared."""

from functools import cache
from typing import Any

from torch import Tensor

import foveate
import tiny
from reference import rows, rules

STEPS = 5
ATOL = 1e-4  # float32 logits, dropped against masked
CLOSE_CALL = 1e-4  # relative distance from a decision's border below which float32 and float64 may differ

METHODS = {
    "fastv": foveate.FastV(layer=2, keep=0.5),
    "fastv all rows": foveate.FastV(layer=3, keep=6, rows="all"),
    "fastv first": foveate.FastV(layer=1, keep=0.25),
    "fastv last layer": foveate.FastV(layer=tiny.LAYERS - 1, keep=0.1),
    "fastv more than there are": foveate.FastV(layer=2, keep=26),
    "himap": foveate.HiMAP(layer1=2, keep1=0.5, layer2=5, keep2=0.25),
    "himap sends": foveate.HiMAP(layer1=1, keep1=0.5, layer2=3, keep2=4, deep="sends"),
    "himap normalised": foveate.HiMAP(layer1=2, keep1=14, layer2=3, keep2=0.5, causal_normalised=True),
    "fastv share": foveate.FastV(layer=2, keep=foveate.Share(0.82)),
    "himap share": foveate.HiMAP(layer1=1, keep1=foveate.Share(0.9), layer2=4, keep2=foveate.Share(0.5)),
    "vtw": foveate.VTW(layer=4),
    "vtw first": foveate.VTW(layer=1),
    "uniform": foveate.Uniform(layer=2, keep=0.3),
    "uniform count": foveate.Uniform(layer=3, keep=7),
    "random": foveate.Random(layer=2, keep=0.4, seed=3),
    "visipruner": foveate.VisiPruner(shallow=1, fire=0.91, influence=0.5, exit=0.93, exit_count=2),
    "visipruner paper": foveate.VisiPruner(
        shallow=2, fire=0.94, influence=0.3, exit=0.9, exit_count=2, consecutive=True, first_layer="halve"
    ),
    "visipruner shallow": foveate.VisiPruner(stages=("shallow",), shallow=3),
    "visipruner no self-attention": foveate.VisiPruner(stages=("shallow",), shallow=4, self_attention=False),
    "visipruner halve": foveate.VisiPruner(stages=("shallow",), shallow=1, first_layer="halve"),
    "visipruner middle": foveate.VisiPruner(stages=("middle",), shallow=1, fire=0.9, influence=0.8),
    "visipruner no shallow": foveate.VisiPruner(
        stages=("middle", "deep"), shallow=1, fire=0.95, influence=0.6, exit=0.95, exit_count=1
    ),
}
FEW = ("fastv", "himap", "visipruner")  # where a property does not hang on the method


def rule_of(method: Any) -> rules.Rule:
    match method.name:
        case "fastv":
            return rules.FastV(method.layer, method.keep, method.rows)
        case "himap":
            return rules.HiMAP(
                method.layer1,
                method.keep1,
                method.layer2,
                method.keep2,
                method.deep,
                method.causal_normalised,
            )
        case "vtw":
            return rules.VTW(method.layer)
        case "uniform":
            return rules.Uniform(method.layer, method.keep)
        case "visipruner":
            return rules.VisiPruner(
                stages=tuple(method.stages),
                shallow=method.shallow,
                fire=method.fire,
                influence=method.influence,
                exit=method.exit,
                exit_count=method.exit_count,
                consecutive=method.consecutive,
                first_layer=method.first_layer,
                self_attention=method.self_attention,
            )
    raise KeyError(method.name)


@cache
def given(row: tiny.Row) -> rows.Input:
    return rows.of_row(tiny.model(row.family, "eager"), row, tiny.batch(row), tiny.IMAGE)


@cache
def reference(row: tiny.Row, method: str) -> rows.Result:
    """Greedy decoding of one row under a method of the matrix ("dense" for none), masked and not dropped."""
    rule = rules.Rule() if method == "dense" else rule_of(METHODS[method])
    out = rows.greedy(given(row), rule, STEPS)
    if out.rule.margin < CLOSE_CALL:
        raise RuntimeError(f"a close call in {method} for {row}: float32 may decide otherwise; choose another seed")
    return out


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    """`model.generate`, greedy unless `options` say otherwise, with the raw logits of every step."""
    defaults = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **{**defaults, **options})


def survivors(trace: Any, layer: int, sample: int) -> list[int]:
    """Visual positions in a layer, as columns of the padded prompt, read off a trace."""
    kept = trace.visual[sample]
    for stage in trace.stages:
        if stage.layer <= layer:
            kept = stage.kept[sample]
    return kept.tolist()


def check_trace(trace: Any, batch: tuple[tiny.Row, ...], results: list[rows.Result], spare: int = 0) -> None:
    width = max(len(row.ids) for row in batch) + spare
    for b, (row, result) in enumerate(zip(batch, results, strict=True)):
        padding = width - len(row.ids)
        assert int(trace.prompt[b]) == len(row.ids)
        assert trace.visual[b].tolist() == [padding + v for v in row.visual]
        for layer, alive in enumerate(result.alive):
            assert survivors(trace, layer, b) == [padding + v for v in alive], f"row {b}, layer {layer}"
            assert int(trace.tokens[layer][b]) == len(row.ids) - len(row.visual) + len(alive)
    if any(result.cuts for result in results):
        assert 0 < trace.flops < trace.dense_flops


def check_row(out: Any, b: int, result: rows.Result) -> None:
    """Row `b` of a `generate` is what the reference says: greedy tokens, and the logits of each step."""
    assert out.sequences[b, -len(result.tokens) :].tolist() == result.tokens
    for step, logits in enumerate(out.logits):
        difference = float((logits[b].double() - result.logits[step]).abs().max())
        assert difference < ATOL, f"row {b}, step {step}: logits differ by {difference:.1e}"
