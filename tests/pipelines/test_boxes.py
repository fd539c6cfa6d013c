"""Square boxes of a given share, and boxes in the middle."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sampling import sample_params
from pipelines.views import Jitter, ViewSpec, eval_view

SPEC = ViewSpec(offsets=((0,), (1,)), size=32, crop=0.875, box_scope="view")
even = st.integers(1, 300).map(lambda half: 2 * half)


def boxes_of(spec: ViewSpec, width: int, height: int, rows: int = 16, seed: int = 0) -> np.ndarray:
    ones = np.ones(rows, dtype=np.int64)
    return sample_params(spec, np.arange(rows), ones, width * ones, height * ones, seed=seed, epoch=0).boxes


@pytest.mark.parametrize(
    "width, height, crop, side",
    [(342, 256, 0.875, 224), (128, 170, 0.875, 112), (240, 320, 0.7, 168), (90, 64, 1.0, 64), (60, 50, 0.9, 44)],
)  # fmt: skip
def test_the_side_is_the_share_of_the_shorter_side_rounded_down_to_even(width, height, crop, side) -> None:
    boxes = boxes_of(replace(SPEC, crop=crop), width, height, 500)
    assert (boxes[..., 2:] == side).all()
    for axis, full in enumerate((width, height)):  # random, over all even places
        assert np.unique(boxes[..., axis]).tolist() == list(range(0, full - side + 1, 2))


@settings(deadline=None, max_examples=100)
@given(even, even, st.floats(0.01, 1), st.booleans(), st.integers(0, 2**63 - 1))
def test_crops_are_even_squares_inside_the_frame(width, height, crop, centre, seed) -> None:
    boxes = boxes_of(replace(SPEC, crop=crop, centre=centre), width, height, 4, seed)
    assert (boxes % 2 == 0).all() and (boxes[..., :2] >= 0).all() and (boxes[..., 2:] >= 2).all()
    assert (boxes[..., 2] == boxes[..., 3]).all()
    assert (boxes[..., 0] + boxes[..., 2] <= width).all() and (boxes[..., 1] + boxes[..., 3] <= height).all()


def test_a_crop_per_view_or_per_clip() -> None:
    boxes = boxes_of(SPEC, 342, 256, 60)
    assert (boxes[:, 0] != boxes[:, 1]).any(-1).mean() > 0.9
    shared = boxes_of(replace(SPEC, box_scope="clip"), 342, 256, 60)
    assert (shared[:, 0] == shared[:, 1]).all()


@pytest.mark.parametrize("crop, side", [(None, 256), (0.875, 224)])
def test_the_centre_is_in_the_middle_to_a_pair_of_pixels(crop, side) -> None:
    boxes = boxes_of(replace(SPEC, crop=crop, centre=True), 340, 256)
    assert (boxes[..., 2:] == side).all()
    middle = boxes[..., :2] + boxes[..., 2:] / 2
    assert np.abs(middle - [170, 128]).max() <= 1


def test_plain_shows_the_same_frames_without_augmentation() -> None:
    spec = ViewSpec(
        offsets=((0, 2), (4, 6)), size=32, crop=0.8, flip=0.5, rotation=9, jitter=Jitter(), channel_drop=True,
        box_scope="view", colour_scope="view", padding="wrap",
    )  # fmt: skip
    rows, ones = np.arange(30), np.ones(30, dtype=np.int64)
    augmented, without = (
        sample_params(p, rows, 40 * ones, 96 * ones, 64 * ones, seed=3, epoch=0)
        for p in (spec, eval_view(spec))
    )
    np.testing.assert_array_equal(without.frames, augmented.frames)
    assert not without.flips.any() and not without.angles.any() and without.noise is None
    for values in (without.boxes, without.colours):
        assert (values == values[:1, :1]).all()
    assert (without.boxes[0, 0] == [24, 8, 50, 50]).all()
    assert eval_view(eval_view(spec)) == eval_view(spec)


def test_plain_lab_drops_no_channel() -> None:
    spec = eval_view(ViewSpec(offsets=((0,),), size=32, lab_drop=True))
    ones = np.ones(20, dtype=np.int64)
    maps = sample_params(spec, np.arange(20), ones, 64 * ones, 64 * ones, seed=0, epoch=0).colours
    assert spec.lab and (maps == maps[:1]).all() and (maps[0, 0, 0] != 0).any(-1).all()


def test_a_squeezed_frame_is_cut_as_if_it_were_171_by_128_whatever_its_shape() -> None:
    """Pace's released code: 112 of 128 rows, 112 of 171 columns."""
    for width, height in ((342, 256), (512, 256)):
        boxes = boxes_of(replace(SPEC, squeeze=171 / 128), width, height)
        assert (boxes[..., 3] == 224).all() and (boxes[..., 2] == int(width * 112 / 171) // 2 * 2).all()


def test_one_flip_for_all_boxes_of_a_clip() -> None:
    spec, ones = replace(SPEC, flip=0.5), np.ones(200, dtype=np.int64)
    found = [
        sample_params(
            replace(spec, flip_scope=scope), np.arange(200), ones, 64 * ones, 48 * ones, seed=0, epoch=0
        )
        for scope in ("clip", "box")
    ]
    assert (found[0].flips[:, 0] == found[0].flips[:, 1]).all() and 0.4 < found[0].flips.mean() < 0.6
    assert (found[1].flips[:, 0] != found[1].flips[:, 1]).any()
    np.testing.assert_array_equal(found[0].boxes, found[1].boxes)


def test_an_evaluation_may_crop_otherwise() -> None:
    assert eval_view(replace(SPEC, crop=None, eval_crop=0.875)).crop == 0.875
