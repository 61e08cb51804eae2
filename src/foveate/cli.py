"""The command line. Words in, words out: every job is done elsewhere, and imported only when it is asked for."""

import json
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    help="Find where a vision-language model looks, and stop computing the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL = "A folder or hub id; mini is the embedded model."
MethodName = Annotated[str, typer.Option("--method", help="The pruning method; see `foveate methods`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method; repeatable.")
]
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


def quiet() -> None:
    """No progress bars, warnings and retries of the libraries between the lines of a command."""
    import huggingface_hub
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed("foveate"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find where a vision-language model looks, and stop computing the rest."""


@app.command()
def ask(
    image: Annotated[str, typer.Argument(help="A picture file; demo is the bundled picture.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: Annotated[str, typer.Option(help=MODEL)] = "mini",
    method: MethodName = "himap",
    settings: Settings = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 32,
    attn: Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa or eager.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; auto is cuda if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed pairs of dense and pruned runs.")] = 5,
    overlay: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the picture with the dropped patches dimmed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a picture, dense and pruned, and measure both."""
    with one_line_errors():
        import torch
        from rich.console import Console

        from foveate import ask as job
        from foveate import show
        from foveate.options import check_layers, method_from, settings_of
        from foveate.report.text import table

        quiet()
        torch.set_num_threads(threads)

        chosen = method_from(method, settings or [])
        picture = job.read_picture(job.find_picture(image))
        if overlay is not None:
            show.check_file_type(overlay)
        loaded, processor = job.load(model, attn, dtype, device)
        check_layers(chosen, loaded.config.get_text_config().num_hidden_layers)
        inputs = job.prepare(processor, picture, question)
        result = job.ask(loaded, processor, inputs, chosen, max_new_tokens, runs)
        setting = {
            "model": model,
            "image": image,
            "question": question,
            "method": {"name": chosen.name, **settings_of(chosen)},
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "attention": loaded.config.get_text_config()._attn_implementation,
            "threads": threads,
        }
        drawn = False
        if overlay is not None:
            try:
                grid = job.grid(loaded, inputs, result.visual)
            except NotImplementedError as error:
                typer.echo(f"foveate: no overlay for this model: {error}", err=True)
            else:
                overlay.parent.mkdir(parents=True, exist_ok=True)
                show.draw(job.shown(processor, picture), grid, result, chosen, question).save(overlay)
                drawn = True
        if as_json:
            typer.echo(json.dumps(show.ask_json(result, chosen, setting, str(overlay) if drawn else None), indent=2))
            return
        console = Console(highlight=False)
        console.print(question, style="bold", markup=False)
        console.print()
        console.print(table(show.ask_rows(result, chosen)))
        console.print()
        for note in show.ask_notes(result, chosen, setting):
            console.print(note, style="dim", markup=False)
        if drawn:
            console.print(f"picture: {overlay}", style="dim", markup=False, soft_wrap=True)


@app.command()
def methods() -> None:
    """The methods: what each keeps, its paper, its fields with their defaults."""
    from rich.console import Console

    from foveate.methods import METHODS
    from foveate.show import methods_table

    Console(highlight=False).print(methods_table(METHODS.values()))


@app.command()
def bench(
    model: Annotated[str, typer.Option(help=MODEL)] = "mini",
    methods: Annotated[
        str, typer.Option(help="Names with commas; fields may follow a name, as in himap:deep=sends.")
    ] = "fastv,himap,vtw,visipruner",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks or folders of your own, with commas; default: all of the suite.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each task.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 0,
    keep: Annotated[
        str | None,
        typer.Option(metavar="SHARES", help="Layer-averaged visual tokens to keep; default: 0.5,0.33,0.15."),
    ] = None,
    flops: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Instead of --keep: exact prefill FLOPs, as shares of dense.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where results go; a run that was killed goes on there.")
    ] = Path("out/bench"),
    batch: Annotated[int, typer.Option(min=1, help="Questions answered as one batch.")] = 16,
    timed: Annotated[int, typer.Option(min=0, help="Prompts that are timed.")] = 3,
    rounds: Annotated[int, typer.Option(min=0, help="How often each setting is timed on each of them.")] = 5,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; auto is cuda if there is one.")] = "auto",
    attn: Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa or eager.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Compare methods at equal cost: quality, fidelity, FLOPs, time and memory on tasks with known answers."""
    with one_line_errors():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what measures memory on a CPU has nothing to warn of
        import torch
        from rich.console import Console

        from foveate import bench as job
        from foveate.report import bench as report
        from foveate.report.figures import as_json, panels
        from foveate.report.progress import progress
        from foveate.report.tradeoff import tradeoff
        from foveate.suite.plan import split_methods
        from foveate.suite.tasks import METRICS_OF

        quiet()
        torch.set_num_threads(threads)

        if keep is not None and flops is not None:
            raise ValueError("--keep and --flops are two dials: give one of them")
        request = job.Request(
            model=model,
            methods=split_methods(methods),
            tasks=tuple(METRICS_OF) if tasks is None else split(tasks),
            limit=limit,
            seed=seed,
            kind="keep" if flops is None else "flops",
            targets=parse_shares(flops or keep or "0.5,0.33,0.15"),
            batch=batch,
            timed=timed,
            rounds=rounds,
        )
        loaded, processor = job.load(request, attn, dtype, device)
        with progress() as advance:
            found = job.bench(loaded, processor, request, out, advance)

        job.write(out / "bench.json", json.dumps(as_json(found), indent=2) + "\n")
        job.write(out / "bench.md", report.as_markdown(found))
        tradeoff(*panels(found), "score, % of dense", f"{model}: quality against cost", out / "tradeoff.png")

        console = Console(highlight=False)
        for title, table in report.point_tables(found).items():
            console.print(title, style="bold underline", markup=False)
            console.print(report.rich_table(table), width=report.WIDEST, crop=False)
            console.print()
        for note in report.notes(found):
            console.print(note, style="dim", markup=False)
        where = f"all figures: {out}/bench.md, bench.json, tradeoff.png"
        console.print(where, style="dim", markup=False, soft_wrap=True)


@app.command()
def cost(
    model: Annotated[str, typer.Argument(help=MODEL)] = "mini",
    method: MethodName = "himap",
    settings: Settings = None,
    image_size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Of the image, in pixels.")] = None,
    visual: Annotated[int | None, typer.Option(min=1, help="Visual tokens, if not by the image.")] = None,
    text: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that are not visual.")] = 40,
    system: Annotated[int, typer.Option(min=0, help="How many of them stand before the image.")] = 0,
    decode: Annotated[int, typer.Option(min=0, help="Tokens decoded after the answer's first.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the KV cache.")] = "bfloat16",
    as_published: Annotated[
        bool, typer.Option("--as-published", help="The formula of the method's paper alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """FLOPs and KV cache of a prompt, dense and pruned, from the model's config alone."""
    with one_line_errors():
        from rich.console import Console
        from transformers import AutoConfig

        from foveate import estimate, show
        from foveate.ask import find_model
        from foveate.options import check_layers, method_from, settings_of
        from foveate.report.text import table

        quiet()
        chosen = method_from(method, settings or [])
        config = AutoConfig.from_pretrained(find_model(model), trust_remote_code=False)
        check_layers(chosen, config.get_text_config().num_hidden_layers)
        if system > text:
            raise ValueError(f"--system {system} is more than --text {text}, which includes it")
        tokens, images = estimate.count_visual(config, visual, parse_size(image_size))
        comparison = estimate.estimate(
            config, chosen, visual=tokens, text=text, system=system, images=images, new_tokens=decode + 1, dtype=dtype
        )
        if as_json:
            setting = {"model": model, "method": {"name": chosen.name, **settings_of(chosen)}}
            counts = {"visual_tokens": tokens, "text_tokens": text, "system_tokens": system, "decoded_tokens": decode}
            sides = {"dense": show.cost_json(comparison.dense), "pruned": show.cost_json(comparison.pruned)}
            typer.echo(json.dumps({**setting, **counts, "published_formula": comparison.formula, **sides}, indent=2))
            return
        console = Console(highlight=False)
        console.print(table(show.cost_rows(comparison, as_published)))
        console.print()
        for note in show.cost_notes(chosen, tokens, text, images):
            console.print(note, style="dim", markup=False)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help=MODEL)] = "mini",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where results go; a run that was killed goes on there.")
    ] = Path("out/profile"),
    data: Annotated[str, typer.Option(help="suite, or a folder with a JSONL file of questions.")] = "suite",
    tasks: Annotated[str, typer.Option(help="Tasks of the suite, with commas; default: all.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Questions of each task.")] = 100,
    deep: Annotated[int, typer.Option(min=1, help="Questions of each task for the costly analyses.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Questions in a batch.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 0,
    attn: Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa or eager.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; auto is cuda if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """How a model uses what it sees: curves, stages and the papers' claims, as a page and as JSON."""
    with one_line_errors():
        import torch

        from foveate import profile as job
        from foveate.ask import load

        quiet()
        torch.set_num_threads(threads)
        questions = job.samples_of(data, split(tasks), limit, seed)
        loaded, processor = load(model, attn, dtype, device)
        job.profile(loaded, processor, model, questions, out, batch=batch, deep=deep, seed=seed)
        typer.echo(f"{out / 'page.html'}\n{out / 'profile.json'}")


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
