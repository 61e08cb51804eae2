"""`foveate cost`: what a prompt costs, from a config alone."""

import json
from typing import Annotated

import typer

from foveate.cli.shared import MODEL, AsJson, MethodName, Settings, one_line_errors, parse_size, quiet


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
        size = parse_size(image_size)
        try:
            tokens, images = estimate.count_visual(config, visual, size)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{error} (--image-size HEIGHTxWIDTH, or --visual TOKENS)") from None
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
