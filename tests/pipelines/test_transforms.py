"""An augmentation's twins, in NumPy and as a DALI graph: each against the formula, and one against the other."""

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.colour import IMAGENET_MEAN, IMAGENET_STD
from pipelines.decode import decode_views
from pipelines.sampling import ViewParams, sample_params
from pipelines.views import Jitter, ViewSpec
from shards import Dataset
from tests.pipelines.reference import decoded_views, disc, lab, made, params_for, render, turned

SIZE = 48
OFFSETS = ((0, 2, 4, 6), (8, 9, 10, 11), (12, 13, 14, 15))
STRONG = Jitter(0.4, 0.4, 0.4, 0.2, probability=0.9, grey=0.3)
Views = Callable[[ViewSpec, list[ViewParams], list[np.ndarray]], np.ndarray]


@pytest.fixture(params=["cpu", "hybrid"], ids=["numpy", "dali"])
def run(request: pytest.FixtureRequest) -> Views:
    """One of the twins: views (B, V, T, H, W, C) of decoded pixels."""

    def views(spec: ViewSpec, batch_params: list[ViewParams], pixels: list[np.ndarray]) -> np.ndarray:
        found = render(made(request.param, spec, len(batch_params)), batch_params, pixels)
        return found.permute(0, 1, 3, 4, 5, 2).numpy().astype(np.float64)

    return views


def smooth_pixels(spec: ViewSpec, samples: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of slow waves in all three channels, which interpolation cannot blur."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: spec.size, : spec.size] / spec.size
    out = []
    for _ in range(samples):
        a, b, phase = (rng.uniform(-1, 1, (spec.views * spec.frames, 1, 1, 3)) for _ in range(3))
        wave = np.sin(2 * np.pi * (a * x[..., None] + b * y[..., None] + phase))
        out.append(np.round(127.5 + 110 * wave).astype(np.uint8))
    return out


def params_of(spec: ViewSpec, samples: int, seed: int = 0) -> list[ViewParams]:
    ones = np.ones(samples, dtype=np.int64)
    whole = sample_params(spec, np.arange(samples), 60 * ones, 176 * ones, 144 * ones, seed=seed, epoch=0)
    return [whole.sample(i) for i in range(samples)]


def expected_views(
    spec: ViewSpec, params: ViewParams, pixels: np.ndarray, *, rotate: bool = True
) -> np.ndarray:
    """(V, T, H, W, C) from one sample's pixels."""
    out = np.empty((spec.views, spec.frames, spec.size, spec.size, 3))
    for v, t in np.ndindex(spec.views, spec.frames):
        frame = pixels[v * spec.frames + t].astype(np.float64)
        if spec.rotation and rotate:
            frame = turned(frame, float(params.angles[v]))
        colours = params.colours[v, t].astype(np.float64)
        if spec.lab_drop:
            dropped = int(np.flatnonzero((colours == 0).all(-1)).item())
            out[v, t] = (lab(frame) - [50, 0, 0]) / [25, 10, 10]
            out[v, t, ..., dropped] = 0
        else:
            out[v, t] = np.einsum("ck,hwk->hwc", colours[:, :3], frame) + colours[:, 3]
    return out


@pytest.mark.parametrize("scope", ["frame", "view", "clip"])
def test_jitter_and_grey(scope, run: Views) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, jitter=STRONG, colour_scope=scope)
    batch_params, pixels = params_of(spec, 5), smooth_pixels(spec, 5)
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        np.testing.assert_allclose(found, expected_views(spec, params, picture), atol=1e-4)


def test_without_jitter_the_views_are_normalised_rgb(run: Views) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE)
    batch_params, pixels = params_of(spec, 2), smooth_pixels(spec, 2)
    expected = (np.stack(pixels).reshape(2, 3, 4, SIZE, SIZE, 3) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(run(spec, batch_params, pixels), expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["frame", "view", "clip"])
def test_lab_with_a_channel_dropped(scope, run: Views) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, lab_drop=True, colour_scope=scope)
    batch_params, pixels = params_of(spec, 5), smooth_pixels(spec, 5)
    pixels[0][:, :4] = 0  # the linear part of both curves
    pixels[0][:, 4:8] = 7
    pixels[0][:, 8:12] = 255
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        np.testing.assert_allclose(found, expected_views(spec, params, picture), atol=0.01)


def in_levels(difference: np.ndarray) -> np.ndarray:
    return difference * 255 * IMAGENET_STD


def test_rotation(run: Views) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, rotation=30)
    batch_params, pixels = params_of(spec, 5), smooth_pixels(spec, 5)
    inside = disc(SIZE)
    angles = np.concatenate([d.angles for d in batch_params])
    assert angles.min() < -15 and angles.max() > 15
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        error = in_levels(found - expected_views(spec, params, picture))[:, :, inside]
        assert np.abs(error).max() < 2 and np.abs(error).mean() < 0.5
        unturned = in_levels(found - expected_views(spec, params, picture, rotate=False))[:, :, inside]
        assert np.abs(unturned).mean() > 1  # the comparison sees a rotation


def test_a_positive_angle_is_counter_clockwise_and_corners_become_black(run: Views) -> None:
    spec = ViewSpec(offsets=((0,),), size=SIZE, rotation=90)
    (params,) = params_of(spec, 1)
    params.angles[:] = 90
    picture = np.full((1, SIZE, SIZE, 3), 60, np.uint8)
    picture[0, :, SIZE // 2 :] = 220  # bright on the right: turned counter-clockwise, bright on top
    found = in_levels(run(spec, [params], [picture])[0, 0, 0]) + 255 * IMAGENET_MEAN
    assert np.abs(found[4 : SIZE // 2 - 2, 4:-4] - 220).max() < 1
    assert np.abs(found[SIZE // 2 + 2 : -4, 4:-4] - 60).max() < 1
    params.angles[:] = 45
    found = in_levels(run(spec, [params], [picture])[0, 0, 0]) + 255 * IMAGENET_MEAN
    for corner in (found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]):
        np.testing.assert_allclose(corner, 0, atol=0.01)


@pytest.mark.parametrize("lab_drop", [False, True])
def test_rotation_then_colour(lab_drop, run: Views) -> None:
    spec = ViewSpec(
        offsets=OFFSETS, size=SIZE, rotation=20, box_scope="view", colour_scope="view", groups=(0, 1, 1),
        lab_drop=lab_drop, jitter=None if lab_drop else STRONG,
    )  # fmt: skip
    batch_params, pixels = params_of(spec, 4), smooth_pixels(spec, 4)
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        error = np.abs(found - expected_views(spec, params, picture))[:, :, disc(SIZE)]
        assert np.percentile(error, 99) < (0.15 if lab_drop else 0.04) and error.mean() < 0.03


def test_the_whole_way_from_a_file(dataset: Dataset, run: Views) -> None:
    """Box, flip, rotation and colour from the video's bytes on, against the same in floating point."""
    spec = ViewSpec(
        offsets=((0, 5), (8, 12), (20, 29)), size=64, rotation=15, jitter=STRONG,
        box_scope="view", colour_scope="view", groups=(0, 1, 1),
    )  # fmt: skip
    rows = [0, 7, 13]
    whole = params_for(spec, dataset, rows, seed=3)
    batch_params = [whole.sample(i) for i in range(3)]
    pixels = [decode_views(dataset.read(row), d, 64) for row, d in zip(rows, batch_params, strict=True)]
    for found, params, row in zip(run(spec, batch_params, pixels), batch_params, rows, strict=True):
        expected = expected_views(spec, params, decoded_views(dataset.read(row), params, 64))
        error = np.abs(in_levels(found - expected))[:, :, disc(64)]
        assert error.mean() < 1 and np.percentile(error, 99) < 4


@pytest.mark.parametrize("kind", ["cpu", "hybrid"])
@pytest.mark.parametrize("extra", [{}, {"rotation": 10.0}, {"lab_drop": True}])
def test_layout(extra: dict, kind: str) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, **extra)
    backend = made(kind, spec, 4)
    for samples in (4, 2, 1):  # up to batch_size
        batch_params, pixels = params_of(spec, samples), smooth_pixels(spec, samples)
        views = render(backend, batch_params, pixels)
        assert views.shape == (samples, 3, 3, 4, SIZE, SIZE)
        assert views.dtype == torch.float32 and views.device.type == "cpu"
        assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("kind", ["cpu", "hybrid"])
def test_a_batch_outlives_the_next(kind: str) -> None:
    spec = ViewSpec(offsets=((0, 1),), size=SIZE)
    backend, batch_params = made(kind, spec, 2), params_of(spec, 2)
    first = render(backend, batch_params, smooth_pixels(spec, 2, seed=1))
    kept = first.clone()
    later = [render(backend, batch_params, smooth_pixels(spec, 2, seed=n)) for n in range(2, 6)]
    assert torch.equal(first, kept)
    assert not torch.equal(first, later[0])


# --- one twin against the other

JITTER = Jitter(0.5, 0.5, 0.5, 0.25, probability=0.8, grey=0.25)
SPEC = ViewSpec(offsets=((0, 1, 2), (3, 4, 5), (6, 7, 8)), size=SIZE, box_scope="view", colour_scope="view")


def pixels_for(spec: ViewSpec, samples: int, seed: int = 0, clips: int = 1) -> list[np.ndarray]:
    """Smooth pictures, of another brightness in every frame, with planes as decode_views leaves them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: spec.size, : spec.size] / spec.size
    a, b, c = rng.uniform(-1, 1, (3, samples, clips * spec.views * spec.decoded, spec.planes, 1, 1))
    waves = 127.5 + 127.5 * np.sin(2 * np.pi * (a * x + b * y + c))
    return list(np.round(waves).astype(np.uint8).transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize(
    "change, mean, most",
    [
        ({}, 1e-6, 1e-4),
        ({"jitter": JITTER, "colour_scope": "frame"}, 1e-6, 1e-4),
        ({"levels": "bgr-255"}, 1e-6, 1e-4),
        ({"levels": "lab"}, 1e-3, 0.01),
        ({"lab_drop": True}, 1e-3, 0.01),
        ({"channel_drop": True, "colour_scope": "frame"}, 1e-6, 2e-4),
        ({"channel_drop": True, "colour_scope": "clip", "jitter": JITTER}, 1e-6, 2e-4),
        ({"modality": "difference"}, 1e-6, 1e-4),
        ({"modality": "flow", "jitter": JITTER}, 1e-6, 1e-4),
        ({"size": 200, "jitter": JITTER, "channel_drop": True}, 1e-6, 2e-4),  # more than a chunk of pixels
    ],
)
def test_the_twins_show_the_same_views(change: dict, mean: float, most: float) -> None:
    spec = replace(SPEC, **change)
    batch_params, pixels = params_of(spec, 3), pixels_for(spec, 3)
    found = render(made("cpu", spec, 3), batch_params, pixels)
    expected = render(made("hybrid", spec, 3), batch_params, pixels)
    assert found.shape == expected.shape and found.stride() == expected.stride()
    difference = (found - expected).abs()
    assert difference.mean() < mean and difference.max() < most and expected.std() > 0.05


@pytest.mark.parametrize("change", [{}, {"lab_drop": True}, {"modality": "difference"}])
def test_the_twins_turn_alike(change: dict) -> None:
    spec = replace(SPEC, rotation=40.0, **change)
    batch_params, pixels = params_of(spec, 3), pixels_for(spec, 3)
    found = render(made("cpu", spec, 3), batch_params, pixels)
    expected = render(made("hybrid", spec, 3), batch_params, pixels)
    assert (found - expected).abs().mean() < 0.01 < 0.1 < expected.std()


@pytest.mark.parametrize("kind", ["cpu", "hybrid"])
def test_clips_of_a_video_are_augmented_one_after_the_other(kind: str) -> None:
    spec = replace(SPEC, channel_drop=True, colour_scope="clip")
    one, other = params_of(spec, 2, seed=1), params_of(spec, 2, seed=2)
    whole = [
        replace(a, **{name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in
                      ("frames", "boxes", "flips", "angles", "colours", "noise")})
        for a, b in zip(one, other, strict=True)
    ]  # fmt: skip
    pixels = pixels_for(spec, 2, clips=2)
    found = render(made(kind, spec, 2, clips=2), whole, pixels)
    half = spec.views * spec.decoded
    parts = [
        render(made(kind, spec, 2), batch_params, [p[part] for p in pixels])
        for batch_params, part in ((one, slice(half)), (other, slice(half, None)))
    ]
    assert torch.equal(found, torch.stack(parts, 1).flatten(0, 1))


def test_packed_pixels_give_what_planes_give() -> None:
    batch_params, planes = params_of(SPEC, 2), pixels_for(SPEC, 2)
    backend = made("cpu", SPEC, 2)
    packed = [np.ascontiguousarray(p) for p in planes]
    assert torch.equal(render(backend, batch_params, planes), render(backend, batch_params, packed))


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    backend, batch_params = made("cpu", SPEC, 2), params_of(SPEC, 2)
    held = [render(backend, batch_params, pixels_for(SPEC, 2, seed=n)) for n in range(3)]
    copies, places = [views.clone() for views in held], {views.data_ptr() for views in held}
    assert len(places) == 3
    kept = held.pop()[:, 1]  # a part of a batch keeps all of it
    del held
    gc.collect()
    later = [render(backend, batch_params, pixels_for(SPEC, 2, seed=n)) for n in range(10, 13)]
    assert torch.equal(kept, copies[2][:, 1])
    assert len({views.data_ptr() for views in later} & places) == 2
    assert kept.untyped_storage().data_ptr() not in {views.data_ptr() for views in later}
