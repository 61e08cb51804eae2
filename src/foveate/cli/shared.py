"""What the commands share: options that several have, how errors are told, and words that become numbers."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

MODEL = "A folder or hub id; mini is the embedded model."
MethodName = Annotated[str, typer.Option("--method", help="The pruning method, see `foveate methods`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method; repeatable.")
]
Attn = Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa or eager.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; auto is cuda if there is one.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    typer.echo(f"foveate: {message}", err=True)
    raise typer.Exit(2)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend is told in one line."""
    try:
        yield
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        fail(textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ..."))
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        fail("out of memory: take --dtype bfloat16, a smaller picture or batch, or another --device")


def quiet() -> None:
    """No progress bars, warnings and retries of the libraries between the lines of a command."""
    import huggingface_hub
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()


def split(text: str) -> tuple[str, ...]:
    """The words between the commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def parse_shares(text: str) -> tuple[float, ...]:
    """The numbers between the commas."""
    try:
        return tuple(map(float, split(text)))
    except ValueError:
        raise ValueError(f'shares are numbers such as 0.5,0.33 and not "{text}"') from None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "336x448", or of "336", a square."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not height.isdigit() or not (width or height).isdigit():
        raise ValueError(f'--image-size is HEIGHTxWIDTH in pixels, not "{text}"')
    return int(height), int(width or height)
