"""`foveate calibrate`: a budget becomes a policy."""

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.shared import MODEL, Attn, Device, Dtype, Threads, one_line_errors, quiet, split


def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL)] = "mini",
    data: Annotated[str, typer.Option(help="suite, or a folder with a JSONL file of questions.")] = "suite",
    tasks: Annotated[str, typer.Option(help="Tasks of the suite, with commas; default: all.")] = "",
    flops: Annotated[
        float | None, typer.Option(help="Budget: exact prefill FLOPs of the decoder, as a share of dense.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Budget instead: how many times as fast the first token is to be.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Budget instead: layer-averaged visual tokens, as a share.")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(help="The cheapest with at most this KL, nats, is wanted.")] = None,
    agreement: Annotated[
        float | None, typer.Option(help="The cheapest with this share of unchanged answers is wanted.")
    ] = None,
    guard: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA", help="Run uncertain prompts again, so that at most this share of answers differs."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the guard's bound.")] = 0.95,
    fresh: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="The bound is for the next so many answers; default: the long run."),
    ] = None,
    methods: Annotated[str, typer.Option(help="What is searched.")] = "fastv,himap,vtw,visipruner,schedule",
    by_kind: Annotated[bool, typer.Option(help="Entries of their own for kinds of question.")] = True,
    trials: Annotated[int, typer.Option(min=1, help="Free schedules that are drawn; half as many of the rest.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each task to search on.")] = 32,
    quoted: Annotated[int, typer.Option(min=1, help="Other questions of each task, for the figures.")] = 48,
    guarded: Annotated[int, typer.Option(min=1, help="Other questions of each task, for the guard.")] = 160,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.json", help="The policy; figures and journals go beside it.")
    ] = Path("out/calibrate/policy.json"),
    batch: Annotated[int, typer.Option(min=1, help="Questions answered as one batch.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=10**9, help="Of the questions and the search.")] = 0,
    eta: Annotated[float, typer.Option(help="VTW's own threshold, nats.")] = 0.003,
    attn: Attn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """A budget becomes a policy: which method, at which layers, how much to keep, for this model and its questions."""
    with one_line_errors():
        import torch
        from rich.console import Console

        from foveate.ask import load
        from foveate.calibration import calibrate as job
        from foveate.calibration import request as asked
        from foveate.calibration.data import sets_of
        from foveate.calibration.search import optimiser
        from foveate.files import write
        from foveate.report import calibration as report
        from foveate.report.pareto import pareto
        from foveate.report.progress import progress

        quiet()
        torch.set_num_threads(threads)
        kind, target = asked.one_budget(flops, speedup, keep, max_kl is not None or agreement is not None)
        if out.suffix != ".json":
            raise ValueError(f'-o "{out}" has to be a file that ends in .json')
        request = asked.Request(
            model=model,
            kind=kind,
            target=target,
            max_kl=max_kl,
            agreement=agreement,
            families=asked.families_of(split(methods)),
            trials=trials,
            eta=eta,
            guard=guard,
            confidence=confidence,
            fresh=fresh,
            by_kind=by_kind,
            batch=batch,
            seed=seed,
            data=data,
        )
        asked.check(request)
        optimiser()
        sets = sets_of(data, split(tasks), (limit, quoted, 0 if guard is None else guarded), seed)
        loaded, processor = load(model, attn, dtype, device)
        place = out.parent / f"{out.stem}-run"
        with progress() as advance:
            found = job.calibrate(loaded, processor, request, sets, place, advance)

        found.policy.save(out)
        write(place / "calibration.md", report.as_markdown(found))
        write(place / "calibration.json", report.as_text(found))
        tried = [(c.cost, c.agreement) for c in found.candidates] if found.target.kind == "flops" else []
        pareto(report.marks(found), tried, found.target.target if tried else None, place / "pareto.png")

        console = Console(highlight=False)
        console.print(report.rich_table(report.points_table(found)), width=400, crop=False)
        if len(found.by_kind) > 1:
            console.print()
            console.print(report.rich_table(report.kinds_table(found)), width=400, crop=False)
        console.print()
        for note in report.notes(found):
            console.print(note, style="dim", markup=False)
        console.print(f"policy: {out}; figures: {place}", style="dim", markup=False, soft_wrap=True)
