"""Where a program would make the host wait for a GPU, found out on a CPU.

A tensor that was made without a device, or copied with `cpu()`, and all that is computed from such tensors alone, lies
on the host. Reading the value of any other tensor is a wait. Operators that wait inside (a boolean index, `nonzero`)
count as well.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"}
READS |= {"__bool__", "__int__", "__float__", "__index__", "__contains__"}
MAKES = {"tensor", "full", "zeros", "ones", "empty", "arange", "randperm"}


class Host(torch.Tensor):
    """A tensor that the host may read without waiting."""


class Waits(TorchFunctionMode):
    """Counts the waits of the code in `places` (parts of file names) while it is on.

    Attributes:
        found: (file and function, what was called) of each.
    """

    def __init__(self, places: Sequence[str] = ("foveate/",)):
        super().__init__()
        self.places, self.found = places, list[tuple[str, str]]()

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in MAKES and kwargs.get("device") is None:
            return function(*args, **kwargs).as_subclass(Host)
        here = all(isinstance(x, Host) for x in flat((*args, *kwargs.values())))
        boolean = name == "__getitem__" and any(index.dtype == torch.bool for index in flat(args[1]))
        if (boolean or name in READS) and not here:
            self.note(name)
        result = function(*args, **kwargs)
        if name == "cpu":
            return result.as_subclass(Host)
        if isinstance(result, Host) and not here:
            return result.as_subclass(torch.Tensor)
        return result

    def note(self, name: str) -> None:
        frame = next((f for f in reversed(traceback.extract_stack()[:-2]) if self.ours(f.filename)), None)
        if frame is not None:
            self.found.append((f"{frame.filename.rsplit('/', 1)[-1]}:{frame.name}", name))

    def ours(self, file: str) -> bool:
        if file.endswith(("waits.py", "pruning/guard.py")):  # all of the model's own code runs below the guard
            return False
        return any(place in file for place in self.places)


def flat(value: Any) -> list[torch.Tensor]:
    """The tensors in an argument or an index, however they are nested."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for part in value for x in flat(part)] if isinstance(value, tuple | list) else []
