"""One question about one picture, answered dense and pruned, with what each answer cost.

Loads, runs and measures; prints nothing. `report` turns the result into text and pictures.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate import cost
from foveate.estimate import published
from foveate.measure import cache_bytes, generate, time_one
from foveate.methods import Method
from foveate.policy import Policy
from foveate.policy.guard import Guarded
from foveate.pruning.families import grids
from foveate.pruning.trace import Trace


@dataclass(frozen=True)
class Side:
    """One of the two answers and what it cost."""

    answer: str
    tokens: list[int]  # in each layer, during the prompt
    flops: int | None  # exact, of the prompt with its vision tower; None for an architecture without a cost model
    published: int | None  # by the formula of the method's paper; None likewise
    cache_bytes: int  # keys and values of the prompt in all layers
    first: list[float]  # seconds to the first token, one per run
    each: list[float]  # seconds for each token after it, one per run


@dataclass(frozen=True)
class Result:
    """The dense and the pruned answer to one question."""

    dense: Side
    pruned: Side
    visual: int  # visual tokens in the prompt
    again: bool | None  # whether a guard let the prompt run again without pruning; None without a guard
    stages: list[tuple[int, np.ndarray]]  # (layer, which visual tokens live from there on: (visual,) bool)


def find_model(name: str) -> str:
    """The folder or hub id that `name` means; "mini" is the embedded model. Raises ValueError for a missing folder."""
    if name == "mini":
        return foveate.mini_path()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(f'there is no model folder "{name}"; a model is a folder, a hub id like org/name, or mini')
    return name


def load(name: str, attention: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """The model, in eval mode on its device, and its processor. Safetensors only; code in the checkpoint is never run.

    attention: an attention implementation of transformers, or None for the model's own. dtype: "auto" is float32 on a
    CPU and the checkpoint's own elsewhere. device: "auto" is a CUDA device if there is one.
    Raises ValueError for what is no vision-language model, broken weights or no device here, OSError for missing files.
    """
    place = find_model(name)
    with one_error(f'the config of "{name}"'):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if getattr(config, "image_token_id", getattr(config, "image_token_index", None)) is None:
        raise ValueError(
            f'"{name}" has no image tokens (model type {config.model_type}); ask needs a vision-language model'
        )
    device = find_device(device)
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f'there is no dtype "{dtype}"; there are auto, float32, bfloat16, float16')
    with one_error(f'the processor of "{name}"'):
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
        if not hasattr(processor, "image_processor"):
            raise ValueError("there is none for pictures in it, only a tokenizer")
    with one_error(f'the weights of "{name}"'):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            place,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, found = loaded
        if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise ValueError(f"{len(missing)} are missing, the first is {missing[0]}")
    return model.to(device).eval(), processor


@contextmanager
def one_error(what: str) -> Iterator[None]:
    """Whatever transformers raises over broken files is one ValueError; missing files stay an OSError."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} cannot be read: {first_line(error)}") from None
    except Exception as error:
        raise ValueError(f"{what} cannot be read: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find_device(name: str) -> str:
    """`name`, or for "auto" a CUDA device if there is one, else the CPU. Raises ValueError if it cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # the device meta has tensors, and no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f'there is no device "{name}" here') from None
    return name


def find_picture(name: str) -> Path:
    """The file that `name` means; "demo" is the bundled picture."""
    return Path(foveate.mini_path(), "demo.png") if name == "demo" else Path(name).expanduser()


MOST_PIXELS = 2**26  # 8192 x 8192: more would fill the memory before any model scales it down
LONGEST = 200  # times as long as wide: processors that scale the shorter side would blow it up


def read_picture(path: Path) -> Image.Image:
    """The picture as RGB, upright, the first frame of several. Raises ValueError if it cannot be read."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height <= MOST_PIXELS and max(width, height) <= LONGEST * min(width, height):
                return in_rgb(ImageOps.exif_transpose(file))
            reason = f"{width} x {height} pixels are too many or too long a strip; scale or crop it"
    except Image.DecompressionBombError:
        reason = "it has far too many pixels; scale it down"
    except FileNotFoundError:
        reason = "no such file"
    except Exception:  # Pillow's decoders raise nearly anything on a corrupt file
        reason = "not a whole picture that Pillow can read"
    raise ValueError(f"cannot read the picture {path}: {reason}")


def in_rgb(picture: Image.Image) -> Image.Image:
    """A picture with 8 bits a channel. Pillow itself would turn 16 bits of grey into white."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture.convert("RGB")
    grey = np.asarray(picture)
    if picture.mode == "F" or grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError("numbers beyond 16 bits are no picture")
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")


def prepare(processor: Any, picture: Image.Image, question: str) -> Any:
    """The model's inputs for one picture and one question, by the processor's chat template if it has one.

    Raises ValueError for a question that is no text, as bytes from a shell may not be.
    """
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the question {question!r} is no text: write it in UTF-8") from None
    if getattr(processor, "chat_template", None) is None:
        text = f"USER: {getattr(processor, 'image_token', '<image>')}\n{question} ASSISTANT:"
        return processor(images=picture, text=text, return_tensors="pt")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def shown(processor: Any, picture: Image.Image) -> Image.Image:
    """The part of the picture that the model is shown: what an image processor's centre crop leaves of it."""
    image_processor = processor.image_processor
    if not getattr(image_processor, "do_center_crop", False):
        return picture
    size, crop = image_processor.size, image_processor.crop_size
    if "shortest_edge" in size:
        scales = (size["shortest_edge"] / min(picture.size),) * 2
    else:
        scales = size["width"] / picture.width, size["height"] / picture.height
    width, height = min(picture.width, crop["width"] / scales[0]), min(picture.height, crop["height"] / scales[1])
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.crop((round(left), round(top), round(left + width), round(top + height)))


def grid(model: Any, inputs: Any, visual: int) -> tuple[int, int]:
    """Rows and columns of the prompt's visual tokens. Raises NotImplementedError where they form no one grid."""
    found = grids(model, inputs, visual)
    if len(found) != 1:
        raise NotImplementedError(f"the picture was cut into {len(found)} tiles")
    return found[0]


def ask(
    model: Any, processor: Any, inputs: Any, method: Method | Policy, new_tokens: int = 32, runs: int = 5
) -> Result:
    """Answer dense and pruned, greedily, and measure both.

    inputs: of one prompt, from `prepare`. method: or a policy, whose guard is then in force. The times are of `runs`
    interleaved pairs of dense and pruned runs with `TIMED_TOKENS` new tokens each.
    Raises ValueError for a prompt without visual tokens, and what `prune` raises.
    """
    inputs = inputs.to(model.device, dtype=model.dtype)
    chosen = method.entry.method if isinstance(method, Policy) else method
    with foveate.prune(model, method) as pruned:
        pruned_answer, pruned_bytes = answer(model, processor, inputs, new_tokens), cache_bytes(model, inputs)
        trace, again = pruned.trace, any(pruned.again) if isinstance(pruned, Guarded) else None
    dense_answer, dense_bytes = answer(model, processor, inputs, new_tokens), cache_bytes(model, inputs)
    if trace is None or len(trace.visual[0]) == 0:
        raise ValueError("the prompt has no visual tokens: the processor put no image token into it")

    dense_times, pruned_times = [], []  # of (first, each)
    for run in range(runs):
        for times in (dense_times, pruned_times) if run % 2 == 0 else (pruned_times, dense_times):
            with foveate.prune(model, method) if times is pruned_times else nullcontext():
                times.append(time_one(model, inputs))

    visual, prompt = trace.visual[0], trace.prompt[0]
    dense_flops, pruned_flops = exact_flops(model.config, trace, inputs)
    dense_published, pruned_published = published_flops(model.config, trace, chosen)
    return Result(
        dense=Side(
            answer=dense_answer,
            tokens=[prompt] * len(trace.tokens),
            flops=dense_flops,
            published=dense_published,
            cache_bytes=dense_bytes,
            first=[first for first, _ in dense_times],
            each=[each for _, each in dense_times],
        ),
        pruned=Side(
            answer=pruned_answer,
            tokens=[layer[0] for layer in trace.tokens],
            flops=pruned_flops,
            published=pruned_published,
            cache_bytes=pruned_bytes,
            first=[first for first, _ in pruned_times],
            each=[each for _, each in pruned_times],
        ),
        visual=len(visual),
        again=again,
        stages=[(stage.layer, torch.isin(visual, stage.kept[0]).cpu().numpy()) for stage in trace.stages],
    )


def exact_flops(config: Any, trace: Trace, inputs: Any) -> tuple[int, int] | tuple[None, None]:
    """FLOPs of the prompt, dense and pruned, with the vision tower's; None for an architecture without a cost model."""
    try:
        whole = cost.prefill(config, trace.tokens, images=cost.images_of(config, inputs))
        tower = whole.vision + whole.projector
        return trace.dense_flops + tower, trace.flops + tower
    except NotImplementedError:
        return None, None


def published_flops(config: Any, trace: Trace, method: Method) -> tuple[int, int] | tuple[None, None]:
    """What the formula of the method's paper says of the prompt, dense and pruned; None as above."""
    visual = len(trace.visual[0])
    paper = partial(published, config, method, visual, trace.prompt[0] - visual)
    try:
        return paper(), paper([(stage.layer, len(stage.kept[0])) for stage in trace.stages])
    except NotImplementedError:
        return None, None


def answer(model: Any, processor: Any, inputs: Any, new_tokens: int) -> str:
    """The words that the model answers with."""
    sequence = generate(model, inputs, new_tokens).sequences[0]
    return processor.decode(sequence[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
