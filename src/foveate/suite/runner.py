"""Runs settings on samples: every answer with its fidelity to the dense one and its exact cost, into a journal."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, pad

import foveate
from foveate import cost
from foveate.ask import prepare
from foveate.measure import generate
from foveate.methods import Method, Random
from foveate.pruning.families import visual_ids
from foveate.suite.journal import Journal
from foveate.suite.tasks import Sample

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")  # inputs of shape (B, L)


@dataclass(frozen=True)
class Setting:
    """A column of the benchmark: a method with all its fields, at a point of the dial; no method is the dense model."""

    name: str
    label: str  # as the user named the method
    point: str  # settings of one point cost the same
    method: Method | None


@dataclass(frozen=True, eq=False)
class Item:
    """A sample ready for the model."""

    sample: Sample
    inputs: dict[str, Tensor]  # of this prompt alone
    images: Any  # as `cost.prefill` takes them; None for an architecture without a cost model
    length: int  # tokens of the prompt
    visual: int
    system: int  # text before the image


@dataclass(frozen=True, eq=False)
class Output:
    """An answer and what its prompt cost."""

    answer: str
    first: Tensor  # (V,) float32 log-probabilities of the first token
    visual: float  # layer-averaged share of the visual tokens
    flops: int | None  # exact, of the whole prefill; None for an architecture without a cost model


def run(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    settings: Sequence[Setting],
    journal: Journal,
    batch: int,
    advance: Callable[[int], None],
) -> None:
    """Answer every sample under every setting, and append the answers to the journal; what it has is not done again.

    settings: the dense one first. batch: samples that run as one. advance: told after each batch how many answers there
    are more. A sample that fails is recorded with its error.
    """
    for number, chunk in enumerate(chunks(samples, batch)):
        names = [sample.name for sample in chunk]
        missing = [setting for setting in settings if not journal.has(setting.name, names)]
        advance((len(settings) - len(missing)) * len(chunk))
        if not missing:
            continue
        items = [attempt(lambda sample=sample: item_of(model, processor, sample)) for sample in chunk]
        features: dict[tuple[str, ...], Any] = {}
        dense = safely(model, processor, items, None, features)
        for setting in missing:
            outputs = dense
            if setting.method is not None:
                outputs = safely(model, processor, items, fresh(setting.method, number), features)
            found = zip(chunk, outputs, dense, strict=True)
            journal.append(record(setting, sample, output, reference) for sample, output, reference in found)
            advance(len(chunk))


def chunks(samples: Sequence[Sample], batch: int) -> Iterator[list[Sample]]:
    """Batches of at most `batch` samples of one task. They depend on nothing else, so that a run can be repeated."""
    for _, of_task in groupby(samples, key=lambda sample: sample.task):
        task = list(of_task)
        yield from (task[start : start + batch] for start in range(0, len(task), batch))


def fresh(method: Method, number: int) -> Method:
    """Random draws anew for every batch, so that its score is a mean over draws and not the luck of one."""
    return dataclasses.replace(method, seed=method.seed + number) if isinstance(method, Random) else method


def record(setting: Setting, sample: Sample, output: Output | Exception, dense: Output | Exception) -> dict[str, Any]:
    """An answer as the journal keeps it; `kl` is KL(dense || pruned) of the first token, in nats."""
    name = {"setting": setting.name, "sample": sample.name}
    if isinstance(output, Exception):
        return {**name, "error": f"{type(output).__name__}: {output}"}
    kept = {**name, "answer": output.answer, "visual": output.visual, "flops": output.flops}
    if isinstance(dense, Exception):
        return kept
    kl = kl_div(output.first, dense.first, log_target=True, reduction="sum").clamp_min(0)
    agrees = bool(output.first.argmax() == dense.first.argmax())
    return {**kept, "kl": kl.item(), "top1": agrees, "same": output.answer == dense.answer}


def attempt(job: Callable[[], Any]) -> Any:
    """What the job returns, or the error that it raised: one sample must not end the benchmark."""
    try:
        return job()
    except Exception as error:  # whatever a processor, a method or a model may raise on this very sample
        return error


def item_of(model: Any, processor: Any, sample: Sample) -> Item:
    """Raises ValueError for a picture that cannot be read and a prompt without visual tokens."""
    inputs = dict(prepare(processor, sample.picture(), sample.question))
    ids = inputs["input_ids"][0]  # (L,)
    visual = torch.isin(ids, torch.tensor(visual_ids(model.config)))
    if not visual.any():
        raise ValueError("the prompt has no visual tokens: the processor put no image token into it")
    try:
        images = cost.images_of(model.config, inputs)
    except NotImplementedError:
        images = None
    return Item(
        sample=sample,
        inputs=inputs,
        images=images,
        length=len(ids),
        visual=int(visual.sum()),
        system=int(visual.int().argmax()),
    )


def safely(
    model: Any, processor: Any, items: Sequence[Item | Exception], method: Method | None, features: dict
) -> list[Output | Exception]:
    """The outputs of the items, or their errors: as one batch, and one by one if the batch fails."""
    good = [item for item in items if isinstance(item, Item)]
    found = attempt(lambda: answer(model, processor, good, method, features)) if good else []
    if isinstance(found, Exception) and len(good) > 1:
        alone = [attempt(lambda item=item: answer(model, processor, [item], method, features)[0]) for item in good]
    else:
        alone = [found] if isinstance(found, Exception) else found
    outputs = iter(alone)
    return [next(outputs) if isinstance(item, Item) else item for item in items]


def answer(
    model: Any, processor: Any, items: Sequence[Item], method: Method | None, features: dict, longest: int | None = None
) -> list[Output]:
    """Greedy answers to a batch of items. features: image features by batch, computed once for all methods."""
    inputs = collate([item.inputs for item in items], pad_id(model, processor))
    inputs = {k: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype) for k, x in inputs.items()}
    longest = longest or max(item.sample.longest for item in items)
    key = tuple(item.sample.name for item in items)
    pruning = foveate.prune(model, method) if method else None
    with pruning or nullcontext(), encoded_once(model, features, key):
        out = generate(model, inputs, longest, output_logits=True)
    words = processor.batch_decode(out.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    first = log_softmax(out.logits[0].float(), dim=-1).cpu()  # (B, V)
    layers = model.config.get_text_config().num_hidden_layers
    trace = pruning.trace if pruning else None
    tokens = trace.tokens if trace else [[item.length for item in items]] * layers
    outputs = []
    for row, item in enumerate(items):
        counts = [layer[row] for layer in tokens]
        text = item.length - item.visual
        visual = cost.layer_average([count - text for count in counts]) / item.visual
        outputs.append(Output(words[row].strip(), first[row], visual, flops_of(model.config, item, method, counts)))
    return outputs


def flops_of(config: Any, item: Item, method: Method | None, counts: Sequence[int]) -> int | None:
    """Exact FLOPs of a prompt with `counts` tokens in each layer: tower, decoder, LM head, scoring; None if unknown."""
    if item.images is None:
        return None
    rows: dict[int, int] = {}
    if method is not None:
        text = item.length - item.visual
        visual = [count - text for count in counts]
        scored = method.scored(visual, text - item.system, item.length)
        # With the last visual token gone there is nothing to decide, and nothing is scored.
        rows = {layer: n for layer, n in scored.items() if visual[layer]}
    try:
        return cost.prefill(config, list(counts), scored=rows, images=item.images).total
    except NotImplementedError:
        return None


def collate(rows: Sequence[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Inputs of single prompts as those of a batch, padded on the left. Raises ValueError if they do not fit."""
    width = max(row["input_ids"].shape[1] for row in rows)

    def joined(name: str) -> Tensor:
        parts = [row[name] for row in rows]
        if name in PER_TOKEN:
            fill = pad_id if name == "input_ids" else 0
            parts = [pad(x, (width - x.shape[1], 0), value=fill) for x in parts]  # (1, width)
        return torch.cat(parts)

    try:
        return {name: joined(name) for name in rows[0]}
    except (RuntimeError, KeyError):
        raise ValueError("these prompts have pictures of different shapes and cannot be one batch") from None


def pad_id(model: Any, processor: Any) -> int:
    known = (processor.tokenizer.pad_token_id, model.generation_config.pad_token_id, processor.tokenizer.eos_token_id)
    return next((number for number in known if isinstance(number, int)), 0)


@contextmanager
def encoded_once(model: Any, features: dict, key: tuple[str, ...]) -> Iterator[None]:
    """Within it, image features of batch `key` are computed the first time, and then taken from `features`."""
    inner = model.base_model
    encode = getattr(inner, "get_image_features", None)
    if encode is None:
        yield
        return

    @functools.wraps(encode)  # generate reads its signature
    def remembered(*args: Any, **kwargs: Any) -> Any:
        if key not in features:
            features[key] = encode(*args, **kwargs)
        return features[key]

    inner.get_image_features = remembered
    try:
        yield
    finally:
        del inner.get_image_features
