"""Which settings a benchmark runs: every method, brought to every cost, beside baselines of the same cost."""

import re
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import foveate
from foveate.methods import METHODS, Method
from foveate.options import method_from
from foveate.suite import dial
from foveate.suite.dial import NO_COST_MODEL
from foveate.suite.runner import Item, Setting, answer

BASELINES = ("random", "uniform")
Dial = Callable[[float], Method]


def split_methods(text: str) -> tuple[str, ...]:
    """ "fastv,himap:deep=sends" -> its methods. A comma starts another method only before a method's name."""
    return tuple(word.strip() for word in re.split(rf",\s*(?=(?:{'|'.join(METHODS)})\b)", text) if word.strip())


def parse_method(word: str) -> tuple[Method, set[str]]:
    """The method that "himap:deep=sends:layer1=2" means, and the fields that the user set."""
    name, *settings = word.split(":")
    return method_from(name, settings), {setting.partition("=")[0] for setting in settings}


def plan_settings(
    model: Any, processor: Any, methods: Sequence[str], kind: str, targets: Sequence[float], pilots: Sequence[Item]
) -> list[Setting]:
    """Dense, then every method and both baselines at every point of the dial.

    A method without a dial is a point of its own: the baselines are brought to what it used on the pilot prompts.

    Args:
        methods: as `parse_method` takes them.
        kind, targets: as `dial.solve` takes them.
        pilots: prompts that stand for all.

    Raises what `prune`, `parse_method` and `dial.solve` raise.
    """
    prompt = typical(model.config, pilots)
    dials: dict[str, Dial] = {}
    fixed: dict[str, Method] = {}
    for word in dict.fromkeys((*methods, *BASELINES)):
        if word == "dense":
            continue
        method, chosen = parse_method(word)
        method = dial.scale_layers(method, chosen, prompt.layers)
        foveate.prune(model, method).remove()  # what cannot be pruned is told before anything is run
        turned = dial.dial_of(method, chosen, prompt.layers)
        if turned is None:
            fixed[word] = method
        else:
            dials[word] = turned

    settings = [Setting("dense", "dense", "dense", None)]

    def add(words: Iterable[str], point: str, target: float) -> None:
        for word in words:
            method = dial.solve(dials[word], kind, target, prompt)
            settings.append(Setting(f"{word} {point}", word, point, method))

    if dials.keys() > set(BASELINES) or not fixed:  # else nobody is there whom the baselines could be compared with
        for target in targets:
            add(dials, f"{100 * target:.4g}%", target)
    for word, method in fixed.items():
        point = f"at {word}'s cost"
        settings.append(Setting(word, word, point, method))
        add(BASELINES, point, used(model, processor, method, pilots, kind))
    return settings


def typical(config: Any, pilots: Sequence[Item]) -> dial.Prompt:
    """The pilot prompt of median length, for which dials are solved."""
    item = sorted(pilots, key=lambda pilot: pilot.length)[len(pilots) // 2]
    layers = config.get_text_config().num_hidden_layers
    return dial.Prompt(config, layers, item.visual, item.length - item.visual, item.system, item.images)


def used(model: Any, processor: Any, method: Method, pilots: Sequence[Item], kind: str) -> float:
    """What a method really uses on the pilot prompts, as a share of dense. None of them may fail."""

    def of(item: Item) -> float:
        (output,) = answer(model, processor, [item], method, {}, longest=1)
        if kind == "keep":
            return output.visual
        (whole,) = answer(model, processor, [item], None, {}, longest=1)
        if output.flops is None or whole.flops is None:
            raise NotImplementedError(NO_COST_MODEL)
        return output.flops / whole.flops

    return fmean(of(item) for item in pilots)
