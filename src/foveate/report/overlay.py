"""Draw which patches of a picture a model still sees: plain arrays in, a picture out.

Knows nothing of models, methods or layers: a panel is a label and a boolean grid.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DIM = 0.22  # what is left of a dropped patch's brightness
SHADE = np.array([16, 20, 28], dtype=np.float32)  # the dark that takes the rest
PAPER, INK = (255, 255, 255), (28, 32, 40)
MARGIN, GAP, LINE = 20, 16, 26  # pixels


def dim_dropped(picture: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The picture with every dropped patch darkened and every kept patch untouched.

    picture: (H, W, 3) uint8; H and W are multiples of the grid. kept: (rows, columns) bool. Returns (H, W, 3) uint8.
    Raises ValueError if the grid does not divide the picture.
    """
    (height, width), (rows, columns) = picture.shape[:2], kept.shape
    if height % rows or width % columns:
        raise ValueError(f"a grid of {rows} x {columns} patches does not divide a picture of {height} x {width} pixels")
    seen = kept.repeat(height // rows, axis=0).repeat(width // columns, axis=1)[..., None]  # (H, W, 1)
    dimmed = picture * DIM + SHADE * (1 - DIM)
    # A dropped patch never comes out brighter than it was, so that black stays black.
    return np.where(seen, picture, np.minimum(picture, dimmed)).astype(np.uint8)


def fit_to_grid(picture: Image.Image, grid: tuple[int, int], width: int = 432) -> np.ndarray:
    """The picture as (H, W, 3) uint8, about `width` pixels wide, in which every patch of `grid` is whole pixels."""
    rows, columns = grid
    cell_width = max(1, round(width / columns))
    cell_height = max(1, round(cell_width * columns * picture.height / picture.width / rows))
    size = (cell_width * columns, cell_height * rows)
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def overlay(picture: Image.Image, panels: Sequence[tuple[str, np.ndarray]], lines: Sequence[str] = ()) -> Image.Image:
    """The panels in a row, each under its label, below some lines of text.

    picture: what the model was shown. panels: (label, kept) with kept (rows, columns) bool, all of one grid.
    lines: text above the panels. Raises ValueError if there is no panel or the grids differ.
    """
    grids = {(kept.shape[0], kept.shape[1]) for _, kept in panels}
    if len(grids) != 1:
        raise ValueError(f"an overlay needs panels of one grid, not {sorted(grids)}")
    base = fit_to_grid(picture, grids.pop())
    height, width = base.shape[:2]
    top = MARGIN + LINE * len(lines) + (MARGIN // 2 if lines else 0)
    sheet = Image.new(
        "RGB", (2 * MARGIN + len(panels) * width + (len(panels) - 1) * GAP, top + LINE + height + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        write(draw, (MARGIN, MARGIN + LINE * number), line, 19, sheet.width - 2 * MARGIN)
    for number, (label, kept) in enumerate(panels):
        left = MARGIN + number * (width + GAP)
        write(draw, (left, top), label, 17, width)
        sheet.paste(Image.fromarray(dim_dropped(base, kept)), (left, top + LINE))
    return sheet


def write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, room: int) -> None:
    """Text in one line, cut with an ellipsis where it does not fit into `room` pixels."""
    font = ImageFont.load_default(size)
    if draw.textlength(text, font) > room:
        while text and draw.textlength(text + "...", font) > room:
            text = text[:-1]
        text += "..."
    draw.text(place, text, fill=INK, font=font)
