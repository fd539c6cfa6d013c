"""The spec is arithmetic: pure, in range, and shared between frames as the scopes say."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.sampling import ViewParams, sample_params
from pipelines.views import Jitter, ViewSpec
from shards import InputError
from tests.pipelines.reference import assert_same_params

ALWAYS = Jitter(probability=1.0, grey=0.0)
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 2**20)
rows_of_a_batch = st.lists(st.integers(0, 2**39), min_size=1, max_size=8)
even = st.integers(1, 200).map(lambda half: 2 * half)


@st.composite
def specs(make) -> ViewSpec:
    views, frames = make(st.integers(1, 3)), make(st.integers(1, 5))
    offset = st.integers(0, 40)
    offsets = tuple(tuple(make(offset) for _ in range(frames)) for _ in range(views))
    lab, drop = make(st.sampled_from([(False, False), (True, False), (False, True)]))
    return ViewSpec(
        offsets=offsets,
        size=32,
        rotation=make(st.sampled_from([0.0, 15.0])),
        jitter=None if lab else make(st.sampled_from([None, Jitter(), ALWAYS, Jitter(grey_from="channel")])),
        lab_drop=lab,
        channel_drop=drop,
        crop=make(st.sampled_from([None, 0.875])),
        box_scope=make(st.sampled_from(["view", "clip"])),
        colour_scope=make(st.sampled_from(["frame", "view", "clip"])),
        groups=make(st.sampled_from([(), tuple(v // 2 for v in range(views))])),
        padding=make(st.sampled_from(["repeat_last", "wrap"])),
    )


def params(
    spec: ViewSpec, rows: list[int], *, seed: int = 0, epoch: int = 0, length: int = 100
) -> ViewParams:
    """The parameters of videos whose length and size follow from the row."""
    chosen = np.array(rows, dtype=np.int64)
    sizes = (length + chosen % 7, 64 + 2 * (chosen % 5), 48 + 2 * (chosen % 3))
    return sample_params(spec, chosen, *sizes, seed=seed, epoch=epoch)


def taken(whole: ViewParams, places: list[int]) -> ViewParams:
    noise = None if whole.noise is None else whole.noise[places]
    return ViewParams(
        whole.frames[places],
        whole.boxes[places],
        whole.flips[places],
        whole.angles[places],
        whole.colours[places],
        noise,
    )


@settings(deadline=None, max_examples=60)
@given(specs(), rows_of_a_batch, seeds, epochs, st.data())
def test_a_sample_draws_the_same_in_whatever_batch_it_is(spec, rows, seed, epoch, data) -> None:
    whole = params(spec, rows, seed=seed, epoch=epoch)
    assert_same_params(params(spec, rows, seed=seed, epoch=epoch), whole)
    places = data.draw(st.permutations(range(len(rows))))
    assert_same_params(params(spec, [rows[p] for p in places], seed=seed, epoch=epoch), taken(whole, places))
    for place, row in enumerate(rows):
        alone = params(spec, [row], seed=seed, epoch=epoch)
        assert_same_params(alone, taken(whole, [place]))
        assert_same_params(alone.sample(0), whole.sample(place))
    middle = len(rows) // 2
    for part in (range(middle), range(middle, len(rows))):
        if part:
            assert_same_params(
                params(spec, [rows[p] for p in part], seed=seed, epoch=epoch), taken(whole, list(part))
            )


def test_rows_epochs_and_seeds_draw_differently() -> None:
    spec = ViewSpec(offsets=((0, 1),), size=32, jitter=ALWAYS, rotation=10)
    batch_params = [
        params(spec, [row], seed=s, epoch=e) for s, e, row in itertools.product(range(3), range(3), range(3))
    ]
    for name in ("colours", "angles"):
        assert len({getattr(d, name).tobytes() for d in batch_params}) == 27


def test_shapes_and_types() -> None:
    spec = ViewSpec(offsets=((0, 1, 2), (4, 5, 6)), size=32)
    d = params(spec, [3, 5, 7, 9])
    assert (d.frames.shape, d.frames.dtype) == ((4, 2, 3), np.int32)
    assert (d.boxes.shape, d.boxes.dtype) == ((4, 2, 4), np.int32)
    assert (d.flips.shape, d.flips.dtype) == ((4, 2), np.bool_)
    assert (d.angles.shape, d.angles.dtype) == ((4, 2), np.float32)
    assert (d.colours.shape, d.colours.dtype) == ((4, 2, 3, 3, 4), np.float32)
    assert (spec.views, spec.frames, spec.span) == (2, 3, 7)


def played(length: int, needed: int, policy: str) -> list[int]:
    """The frames that a video of `length` shows one after the other, plainly."""
    shown = []
    for n in range(needed):
        if n < length:
            shown.append(n)
        else:
            shown.append(length - 1 if policy == "repeat_last" else shown[n - length])
    return shown


def frames_of(spec: ViewSpec, rows: int, length: int, seed: int = 0) -> NDArray[np.int32]:
    ones = np.ones(rows, dtype=np.int64)
    return sample_params(
        spec, np.arange(rows), length * ones, 64 * ones, 64 * ones, seed=seed, epoch=0
    ).frames


@settings(deadline=None, max_examples=100)
@given(specs(), st.integers(1, 100), seeds)
def test_frame_numbers_are_the_offsets_of_one_start_under_the_policy(spec, length, seed) -> None:
    loops = spec.padding == "wrap" and spec.span > length  # then it starts anywhere
    starts = range(length if loops else max(length - spec.span + 1, 1))
    shown = played(length, starts[-1] + spec.span, spec.padding)
    possible = [[[shown[start + offset] for offset in view] for view in spec.offsets] for start in starts]
    for frames in frames_of(spec, 4, length, seed):
        assert frames.min() >= 0 and frames.max() < length
        assert frames.tolist() in possible


@pytest.mark.parametrize("policy", ["repeat_last", "wrap", "error"])
def test_a_clip_starts_everywhere_where_it_fits_and_nowhere_else(policy) -> None:
    spec = ViewSpec(offsets=((0, 2, 4), (3, 5, 7)), size=32, padding=policy)
    for room in (0, 1, 4):
        frames = frames_of(spec, 300, spec.span + room)
        starts, counts = np.unique(frames[:, 0, 0], return_counts=True)
        assert starts.tolist() == list(range(room + 1))
        assert counts.min() > 300 / (room + 1) / 2  # about equally often
        assert (frames - frames[:, :1, :1] == np.array(spec.offsets)).all()


def test_a_short_video_by_hand() -> None:
    spec = ViewSpec(offsets=((0, 1, 2, 3, 4, 5, 6),), size=32)
    assert frames_of(spec, 1, 3)[0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2]
    looped = {tuple(frames[0]) for frames in frames_of(replace(spec, padding="wrap"), 50, 3).tolist()}
    assert looped == {(0, 1, 2, 0, 1, 2, 0), (1, 2, 0, 1, 2, 0, 1), (2, 0, 1, 2, 0, 1, 2)}


def test_reject_refuses_a_video_one_frame_too_short() -> None:
    spec = ViewSpec(offsets=((0, 9),), size=32, padding="error")
    assert frames_of(spec, 1, 10).tolist() == [[[0, 9]]]
    with pytest.raises(InputError, match="9 frames is shorter than the 10"):
        frames_of(spec, 1, 9)


def boxes_of(spec: ViewSpec, width: int, height: int, seed: int, rows: int = 8) -> NDArray[np.int64]:
    ones = np.ones(rows, dtype=np.int64)
    boxes = sample_params(
        spec, np.arange(rows), 50 * ones, width * ones, height * ones, seed=seed, epoch=0
    ).boxes
    return boxes.reshape(-1, 4).astype(np.int64)


@settings(deadline=None, max_examples=150)
@given(
    specs(),
    even,
    even,
    seeds,
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    st.floats(0.1, 1),
    st.floats(1, 9),
)
def test_boxes_are_even_and_inside_whatever_the_frame(spec, width, height, seed, area, low, high) -> None:
    spec = replace(spec, area=tuple(sorted(area)), ratio=(low, high))
    boxes = boxes_of(spec, width, height, seed)
    left, top, w, h = boxes.T
    assert (boxes % 2 == 0).all()
    assert w.min() >= 2 and h.min() >= 2 and left.min() >= 0 and top.min() >= 0
    assert (left + w).max() <= width and (top + h).max() <= height


@settings(deadline=None, max_examples=100)
@given(st.integers(16, 200), st.floats(0.75, 1.3), seeds)
def test_area_and_ratio_are_as_stated_where_the_frame_allows(half, aspect, seed) -> None:
    # half the area of a frame of nearly the box's shape always fits; a side w came from [w − 0.5, w + 2.5)
    width, height = 2 * half, 2 * round(half / aspect)
    spec = ViewSpec(offsets=((0,),), size=32, area=(0.1, 0.5), ratio=(0.7, 1.4))
    _, _, w, h = boxes_of(spec, width, height, seed, rows=32).T
    assert ((w - 0.5) * (h - 0.5) <= 0.5 * width * height).all()
    assert ((w + 2.5) * (h + 2.5) >= 0.1 * width * height).all()
    assert ((w - 0.5) / (h + 2.5) <= 1.4).all() and ((w + 2.5) / (h - 0.5) >= 0.7).all()


def test_boxes_use_the_whole_of_their_ranges() -> None:
    spec = ViewSpec(offsets=((0,),), size=32, area=(0.1, 0.5), ratio=(0.5, 2.0))
    left, top, w, h = boxes_of(spec, 400, 400, seed=1, rows=2000).T
    share, ratio = w * h / 160_000, w / h
    assert share.min() < 0.12 and share.max() > 0.48 and abs(share.mean() - 0.3) < 0.02
    assert ratio.min() < 0.55 and ratio.max() > 1.8
    assert abs(np.log(ratio).mean()) < 0.05  # wide as often as tall
    for side, start in ((w, left), (h, top)):
        place = start / (400 - side)
        assert place.min() < 0.02 and place.max() > 0.98 and abs(place.mean() - 0.5) < 0.03


def test_where_no_box_fits_the_largest_allowed_is_cut_from_the_centre() -> None:
    spec = ViewSpec(offsets=((0,),), size=32, area=(0.9, 1.0), ratio=(0.7, 1.4))
    assert (boxes_of(spec, 200, 20, seed=0) == [86, 0, 28, 20]).all()  # 20 · 1.4 = 28 wide
    assert (boxes_of(spec, 28, 200, seed=0) == [0, 80, 28, 40]).all()  # 28 / 0.7 = 40 high


def test_the_whole_frame_when_area_and_ratio_say_so() -> None:
    spec = ViewSpec(offsets=((0,),), size=32, area=(1.0, 1.0), ratio=(2.0, 2.0))
    assert (boxes_of(spec, 128, 64, seed=0) == [0, 0, 128, 64]).all()


def test_probabilities_and_angles() -> None:
    spec = ViewSpec(offsets=((0,),), size=32, flip=0.25, rotation=20)
    d = params(spec, list(range(2000)))
    assert abs(d.flips.mean() - 0.25) < 0.03
    assert np.abs(d.angles).max() <= 20 and d.angles.min() < -18 and d.angles.max() > 18
    none, always = (params(replace(spec, flip=p, rotation=0), list(range(50))) for p in (0, 1))
    assert not none.flips.any() and always.flips.all() and not none.angles.any()


def shared(values: NDArray) -> list[list[bool]]:
    return [[bool(np.array_equal(a, b)) for b in values] for a in values]


def test_groups_share_box_flip_angle_and_colours() -> None:
    spec = ViewSpec(
        offsets=((0, 1), (2, 3), (4, 5)), size=32, rotation=30, jitter=ALWAYS,
        box_scope="view", colour_scope="view", groups=(0, 1, 1),
    )  # fmt: skip
    d = params(spec, list(range(64)))
    pairs = [[True, False, False], [False, True, True], [False, True, True]]
    for sample in range(64):
        assert shared(d.angles[sample]) == shared(d.colours[sample]) == pairs
        assert (d.boxes[sample, 1] == d.boxes[sample, 2]).all() and d.flips[sample, 1] == d.flips[sample, 2]
        assert (d.colours[sample, :, 0] == d.colours[sample, :, 1]).all()
    assert (d.boxes[:, 0] != d.boxes[:, 1]).any(-1).mean() > 0.9
    assert 0.3 < (d.flips[:, 0] != d.flips[:, 1]).mean() < 0.7


@pytest.mark.parametrize("scope, different", [("clip", 1), ("view", 2), ("frame", 6)])
@pytest.mark.parametrize("lab_drop", [False, True])
def test_colours_are_shared_within_their_scope_only(scope, different, lab_drop) -> None:
    spec = ViewSpec(
        offsets=((0, 1, 2), (3, 4, 5)), size=32, colour_scope=scope,
        jitter=None if lab_drop else ALWAYS, lab_drop=lab_drop,
    )  # fmt: skip
    maps = params(spec, list(range(40))).colours.reshape(40, 6, 12)
    distinct = [len(np.unique(sample, axis=0)) for sample in maps]
    assert max(distinct) == min(different, 3 if lab_drop else 6)  # Lab has three channels to drop
    if not lab_drop:
        assert set(distinct) == {different}
    if scope == "view":
        assert (maps[:, :3] == maps[:, :1]).all() and (maps[:, 3:] == maps[:, 3:4]).all()


def test_box_scope_clip_gives_all_views_one_box_flip_and_angle() -> None:
    spec = ViewSpec(offsets=((0,), (1,), (2,)), size=32, rotation=30, box_scope="clip", groups=(0, 1, 2))
    d = params(spec, list(range(30)))
    for values in (d.boxes, d.flips, d.angles):
        assert (values == values[:, :1]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"offsets": ()},
        {"offsets": ((),)},
        {"offsets": ((0, 1), (2,))},
        {"offsets": ((0, -1),)},
        {"groups": (0,)},
        {"groups": (0, 1, 1)},
        {"area": (0.0, 1.0)},
        {"area": (0.5, 0.3)},
        {"area": (0.5, 1.2)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (1.0, math.inf)},
        {"area": (math.nan, 1.0)},
        {"lab_drop": True, "jitter": Jitter()},
        {"lab_drop": True, "channel_drop": True},
        {"lab_drop": True, "levels": "bgr-255"},
        {"levels": "lab", "jitter": Jitter()},
        {"levels": "rgb"},
        {"size": 0},
        {"size": 33},
        {"flip": -0.1},
        {"flip": 1.5},
        {"flip": math.nan},
        {"rotation": -5.0},
        {"rotation": math.nan},
        {"rotation": math.inf},
        {"box_scope": "frame"},
        {"colour_scope": "views"},
        {"start_scope": "frame"},
        {"padding": "repeat"},
        {"modality": "rgbd"},
        {"crop": 0.0},
        {"crop": 1.1},
        {"crop": math.nan},
        {"paces": (1, 0)},
        {"paces": (-1,)},
        {"paces": (math.nan,)},
        {"channel_drop": True, "levels": "bgr-255"},
        {"modality": "flow", "rotation": 5.0},
        {"modality": "flow", "channel_drop": True},
        {"modality": "flow", "lab_drop": True},
        {"modality": "difference", "jitter": Jitter()},
        {"modality": "difference", "paces": (1, 2)},
        {"modality": "difference", "offsets": ((0, 2), (2, 4))},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ValueError):
        ViewSpec(**{"offsets": ((0, 1), (2, 3)), "size": 32, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"brightness": -0.1},
        {"hue": math.nan},
        {"contrast": math.inf},
        {"probability": 1.1},
        {"grey": math.nan},
        {"grey_from": "red"},
    ],
)
def test_a_jitter_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Jitter(**wrong)


def test_channels_and_frames_of_the_modalities() -> None:
    specs = {
        m: ViewSpec(offsets=((0, 1), (2, 3)), size=32, modality=m) for m in ("rgb", "difference", "flow")
    }
    assert {m: (p.channels, p.planes, p.decoded, p.span) for m, p in specs.items()} == {
        "rgb": (3, 3, 2, 4),
        "difference": (1, 1, 3, 5),
        "flow": (3, 2, 2, 4),
    }
