"""How many visual tokens an image becomes, and which grids of patches the vision tower runs for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .shapes import VisionShape, vision_shape

# How many images; or for each its (height, width) in pixels or its patch grid (frames, rows, columns).
Images = int | Sequence[Sequence[int]]


def visual_tokens(config: Any, size: Sequence[int] | None = None) -> int:
    """Visual tokens of one image in the prompt, as far as the config alone tells.

    Args:
        config: a composite config or a `VisionShape`.
        size: (height, width) in pixels or the patch grid (frames, rows, columns). Needed by models that run at an
            image's own resolution (Qwen-VL, Pixtral) or cut it into tiles (LLaVA-NeXT, LLaVA-OneVision), ignored by
            those of one fixed resolution. For Qwen-VL: a size within the processor's limits, which no config holds.

    Raises:
        ValueError: the config has no vision tower, or needs a size and none was given.
        NotImplementedError: the processor decides (InternVL, SmolVLM and Idefics3 cut large images into tiles).
    """
    shape = vision_shape(config)
    if shape is None:
        raise ValueError("A text config has no images; pass the composite config.")
    if size is not None and shape.splits:
        raise NotImplementedError(
            f"The processor decides how many tiles an image becomes: pass {visual_tokens(shape)} tokens for each."
        )
    if shape.tiles:
        return _anyres_tokens(shape, _need(size))
    grids = patch_grids(shape, 1 if size is None else [size])
    return sum(tower_tokens(shape, *grid) for grid in grids)


def tower_tokens(shape: VisionShape, frames: int, rows: int, columns: int) -> int:
    """Visual tokens that tower and projector make of one grid of patches."""
    return frames * (rows // shape.merge) * (columns // shape.merge) + shape.projects_class_token


def patch_grids(shape: VisionShape, images: Images) -> list[tuple[int, int, int]]:
    """The grids of patches (frames, rows, columns) that the tower runs for these images, one per tile."""
    if isinstance(images, int):
        if images and (shape.side is None or shape.tiles):
            _need(None)
        side = shape.side or 0
        return [(1, side, side)] * images
    return [grid for image in images for grid in _grids(shape, tuple(image))]


def _grids(shape: VisionShape, image: tuple[int, ...]) -> list[tuple[int, int, int]]:
    if len(image) == 3:
        return [(image[0], image[1], image[2])]
    if len(image) != 2:
        raise ValueError(f"An image is (height, width) in pixels or (frames, rows, columns) in patches; got {image}.")
    height, width = image
    if shape.side is not None:  # resized to the fixed input, or that and tiles of the same size
        tiles = 1
        if shape.tiles:
            best, pixels = _best_resolution(height, width, shape.tiles), shape.side * shape.patch
            tiles += math.ceil(best[0] / pixels) * math.ceil(best[1] / pixels)
        return [(1, shape.side, shape.side)] * tiles
    unit = shape.patch * shape.merge
    if shape.longest_side is None:
        return [(1, round(height / unit) * shape.merge, round(width / unit) * shape.merge)]
    shrink = max(height / shape.longest_side, width / shape.longest_side, 1.0)
    rows, columns = (math.ceil(math.floor(s / shrink) / unit) * shape.merge for s in (height, width))
    return [(1, rows, columns)]


def _need(size: Sequence[int] | None) -> Sequence[int]:
    if size is None:
        raise ValueError(
            "This model's visual tokens depend on the image: pass its (height, width) in pixels or its patch grid "
            "(frames, rows, columns)."
        )
    return size


def _best_resolution(height: int, width: int, choices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """LLaVA-NeXT's choice: the resolution that shows most of the image's pixels, then the one that wastes fewest."""

    def shown_and_waste(choice: tuple[int, int]) -> tuple[int, int]:
        scale = min(choice[1] / width, choice[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, -(choice[0] * choice[1] - shown)

    return max(choices, key=shown_and_waste)


def _anyres_tokens(shape: VisionShape, size: Sequence[int]) -> int:
    """LLaVA-NeXT, OneVision: the small picture, then the tiles without padding, each row closed by a newline token."""
    if len(size) != 2 or shape.side is None:
        raise ValueError("This model cuts an image into tiles: pass its (height, width) in pixels.")
    height, width = size
    best = _best_resolution(height, width, shape.tiles)
    rows, columns = (pixels // (shape.side * shape.patch) * shape.side for pixels in best)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    if shape.max_tiles is not None:
        ratio = math.sqrt(rows * columns / (shape.max_tiles * shape.side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return tower_tokens(shape, 1, shape.side, shape.side) + rows * columns + rows


def images_of(config: Any, inputs: Mapping[str, Any]) -> Images:
    """What the inputs of a model's forward say about its images, in the form that `prefill` takes; 0 without images.

    Raises NotImplementedError for videos that come without patch grids.
    """
    grids = [g for name in ("image_grid_thw", "video_grid_thw") if (g := inputs.get(name)) is not None]
    if grids:  # Qwen-VL
        return [row for grid in grids for row in grid.tolist()]
    if inputs.get("pixel_values_videos") is not None:
        raise NotImplementedError(
            "Videos without patch grids: pass images as the number of frames that the tower runs."
        )
    shape, pixels, sizes = vision_shape(config), inputs.get("pixel_values"), inputs.get("image_sizes")
    if shape is None or pixels is None:
        return 0
    if sizes is None:
        # SmolVLM fills a batch up with empty images, which its tower skips.
        return int(pixels.flatten(2).any(-1).sum()) if pixels.ndim == 5 else len(pixels)
    sizes = [tuple(map(int, size)) for size in sizes]
    if shape.side is None:  # Pixtral: sizes after the processor
        return [(1, height // shape.patch, width // shape.patch) for height, width in sizes]
    groups = inputs.get("batch_num_images")  # LLaVA-OneVision does not cut images that come in company
    alone = [True] * len(sizes) if groups is None else [n == 1 for n in map(int, groups) for _ in range(n)]
    whole = (1, shape.side, shape.side)
    return [size if single else whole for size, single in zip(sizes, alone, strict=True)]
