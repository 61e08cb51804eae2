"""`foveate methods`: what there is."""


def methods() -> None:
    """The methods: what each keeps, its paper, its fields with their defaults."""
    from rich.console import Console

    from foveate.methods import METHODS
    from foveate.show import methods_table

    Console(highlight=False).print(methods_table(METHODS.values()))
