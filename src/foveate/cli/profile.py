"""`foveate profile`: how a model uses what it sees."""

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.shared import MODEL, Attn, Device, Dtype, Threads, one_line_errors, quiet, split


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
    attn: Attn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
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
