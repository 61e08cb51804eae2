"""`foveate bench`: methods at equal cost on tasks with known answers."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.shared import MODEL, Attn, Device, Dtype, Threads, one_line_errors, parse_shares, quiet, split


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
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = None,
    threads: Threads = 1,
) -> None:
    """Compare methods at equal cost: quality, fidelity, FLOPs, time and memory on tasks with known answers."""
    with one_line_errors():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what measures memory on a CPU has nothing to warn of
        import torch
        from rich.console import Console

        from foveate import bench as job
        from foveate.files import write
        from foveate.report import bench as report
        from foveate.report.figures import as_json, panels
        from foveate.report.progress import progress
        from foveate.report.tradeoff import tradeoff
        from foveate.suite.plan import split_methods
        from foveate.suite.tasks import DRAWN

        quiet()
        torch.set_num_threads(threads)

        if keep is not None and flops is not None:
            raise ValueError("--keep and --flops are two dials: give one of them")
        request = job.Request(
            model=model,
            methods=split_methods(methods),
            tasks=DRAWN if tasks is None else split(tasks),
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

        write(out / "bench.json", json.dumps(as_json(found), indent=2) + "\n")
        write(out / "bench.md", report.as_markdown(found))
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
