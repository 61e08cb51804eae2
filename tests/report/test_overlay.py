"""The overlay on plain arrays: kept patches as they were, dropped ones dimmer, every panel under its label."""

import numpy as np
import pytest
from PIL import Image

from foveate.report.overlay import LINE, MARGIN, dim_dropped, fit_to_grid, overlay


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def patches(picture: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Which pixels of the picture lie in a kept patch, (H, W) bool, one patch at a time."""
    rows, columns = kept.shape
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    seen = np.zeros(picture.shape[:2], dtype=bool)
    for row in range(rows):
        for column in range(columns):
            seen[row * height : (row + 1) * height, column * width : (column + 1) * width] = kept[row, column]
    return seen


def test_kept_patches_are_unchanged_and_dropped_ones_dimmer():
    picture = noise(12, 20)
    kept = np.array([[True, False, True, False], [False, False, True, True], [True, True, False, False]])
    out, seen = dim_dropped(picture, kept), patches(picture, kept)
    assert out.dtype == np.uint8 and out.shape == picture.shape
    assert (out[seen] == picture[seen]).all()
    assert (out[~seen] <= picture[~seen]).all()
    assert out[~seen].mean() < 0.4 * picture[~seen].mean()


def test_the_picture_given_is_not_changed():
    picture = noise(8, 8)
    before = picture.copy()
    dim_dropped(picture, np.zeros((4, 4), dtype=bool))
    assert (picture == before).all()


def test_a_grid_that_does_not_divide_the_picture_is_refused():
    with pytest.raises(ValueError, match="3 x 4 patches"):
        dim_dropped(noise(10, 20), np.ones((3, 4), dtype=bool))


@pytest.mark.parametrize(("size", "grid"), [((500, 375), (12, 12)), ((300, 640), (7, 3)), ((5, 5), (24, 24))])
def test_every_patch_of_a_fitted_picture_is_whole_pixels(size, grid):
    fitted = fit_to_grid(Image.new("RGB", size), grid)
    assert fitted.shape[0] % grid[0] == 0 and fitted.shape[1] % grid[1] == 0
    assert fitted.shape[1] / fitted.shape[0] == pytest.approx(size[0] / size[1], rel=0.1)


def test_panels_stand_in_a_row_in_the_order_given():
    picture = Image.fromarray(noise(432, 432))
    everything, nothing = np.ones((6, 6), dtype=bool), np.zeros((6, 6), dtype=bool)
    sheet = np.asarray(overlay(picture, [("all", everything), ("none", nothing)]))
    left = sheet[MARGIN + LINE : MARGIN + LINE + 432, MARGIN : MARGIN + 432]
    right = sheet[MARGIN + LINE : MARGIN + LINE + 432, -MARGIN - 432 : -MARGIN]
    assert (left == np.asarray(picture)).all()
    assert (right == dim_dropped(np.asarray(picture), nothing)).all()


def test_labels_and_lines_are_written_and_stay_on_the_sheet():
    panels = [("layer 2: 3 of 4 kept", np.ones((2, 2), dtype=bool))]
    plain = np.asarray(overlay(Image.new("RGB", (64, 64), "white"), panels))
    assert (plain[MARGIN : MARGIN + LINE] < 128).any()  # the label
    long = np.asarray(overlay(Image.new("RGB", (64, 64), "white"), panels, ["a very long answer " * 40]))
    assert (long[MARGIN : MARGIN + LINE] < 128).any()
    assert (long[:, -MARGIN + 1 :] == 255).all()  # cut before the margin


def test_panels_of_different_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        overlay(Image.new("RGB", (8, 8)), [("a", np.ones((2, 2), dtype=bool)), ("b", np.ones((4, 4), dtype=bool))])
