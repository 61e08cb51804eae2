"""`prune`: the one function most users call."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from foveate.methods import Method, by_name
from foveate.policy.guard import Guarded
from foveate.policy.policy import Policy
from foveate.pruning.engine import Pruned


def prune(model: PreTrainedModel, method: Method | Policy | str | Path, visual: Tensor | None = None) -> Pruned:
    """Drop visual tokens at chosen decoder layers of a model, while it reads a prompt.

        with foveate.prune(model, foveate.HiMAP()) as pruned:
            ids = model.generate(**inputs)
        print(pruned.trace)

    Without `with` it lasts until `.remove()`. Nothing is left behind on the model. A KV cache made inside remembers
    what its layers hold: it has to go on inside (a later `prune` will do) and to keep its rows in their order. A plain
    forward returns logits of the survivors only, the last of them last. A compiled model is compiled anew on entering
    and on leaving, and with it all that the process has compiled.

    Args:
        model: a transformers model whose prompts hold one token per visual feature.
        method: a method of `foveate.methods`, or its name for the published defaults; or a policy made for this model,
            or its file ("policy.json"). A policy with a guard runs prompts again whose answers it cannot trust.
        visual: (B, L) bool, where the visual tokens of the prompt are; only for calls with `inputs_embeds`, otherwise
            the token ids tell.

    Raises:
        ValueError: unknown method, a layer out of range, no transformers model, or one that is being pruned already; a
            policy that was made for another model, or a file that is no policy.
        NotImplementedError: a model whose visual tokens cannot be dropped.
    """
    if isinstance(method, Path) or (isinstance(method, str) and method.endswith(".json")):
        method = Policy.load(method)
    if isinstance(method, Policy):
        method.check(model)
        entry = method.entry
        return Guarded(model, entry.method, entry.guard, visual) if entry.guard else Pruned(model, entry.method, visual)
    if isinstance(method, str):
        method = by_name(method)()
    if not isinstance(method, Method):
        raise ValueError(f"{method!r} is no method: give one of foveate.methods, such as foveate.HiMAP(), or its name")
    return Pruned(model, method, visual)
