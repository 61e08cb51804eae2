"""`foveate ask`: one question about one picture, dense and pruned."""

import json
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.shared import MODEL, AsJson, Attn, Device, Dtype, MethodName, Settings, Threads, one_line_errors, quiet


def ask(
    image: Annotated[str, typer.Argument(help="A picture file; demo is the bundled picture.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: Annotated[str, typer.Option(help=MODEL)] = "mini",
    method: MethodName = "himap",
    settings: Settings = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 32,
    attn: Attn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
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
        from foveate.files import save
        from foveate.options import check_layers, method_from, settings_of
        from foveate.policy import Policy
        from foveate.report.text import table

        quiet()
        torch.set_num_threads(threads)

        policy = None
        if method.endswith(".json"):
            if settings:
                raise ValueError("--set is for methods: the fields of a policy stand in its file")
            policy = Policy.load(method).asked(question)
        chosen = method_from(method, settings or []) if policy is None else policy.entry.method
        picture = job.read_picture(job.find_picture(image))
        if overlay is not None:
            show.check_file_type(overlay)
        loaded, processor = job.load(model, attn, dtype, device)
        if policy is not None:
            policy.check(loaded)
        check_layers(chosen, loaded.config.get_text_config().num_hidden_layers)
        inputs = job.prepare(processor, picture, question)
        result = job.ask(loaded, processor, inputs, policy or chosen, max_new_tokens, runs)
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
                drawing = show.draw(job.shown(processor, picture), grid, result, chosen, question)
                save(overlay, lambda half: drawing.save(half, show.picture_format(overlay)))
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
