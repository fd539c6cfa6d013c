"""Difference, flow, channel drop and BGR: every backend that runs here against NumPy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.colour import LUMA, MID_GREY
from pipelines.decode import decode_views
from pipelines.sampling import NOISE_FRAMES, ViewParams, sample_params
from pipelines.transforms.numpy import noise_bank
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError
from tests.pipelines.reference import (
    decoded_luma,
    flow_video,
    loader,
    made,
    params_for,
    render,
    write_dataset,
)

SIZE, WIDTH, HEIGHT, FRAMES = 64, 128, 96, 24
SEGMENTS = tuple(tuple(range(5 * v, 5 * v + 10)) for v in range(3))  # half overlapping, as TCP's
TCP = ViewSpec(offsets=SEGMENTS, size=SIZE, crop=0.875, box_scope="view", colour_scope="view")
JITTER = Jitter(0.5, 0.5, 0.5, 0.25, probability=0.8, grey=0.25)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def samples(spec: ViewSpec, count: int, seed: int = 0) -> list[ViewParams]:
    ones = np.ones(count, dtype=np.int64)
    whole = sample_params(
        spec, np.arange(count), FRAMES * ones, WIDTH * ones, HEIGHT * ones, seed=seed, epoch=0
    )
    return [whole.sample(i) for i in range(count)]


def run(spec: ViewSpec, batch_params: list[ViewParams], inputs: list[Any], kind: str = "cpu") -> np.ndarray:
    """(B, V, T, H, W, C) of encoded videos, or of pixels."""
    views = render(made(kind, spec, len(batch_params)), batch_params, inputs)
    assert views.shape == (len(batch_params), spec.views, spec.channels, spec.frames, spec.size, spec.size)
    assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)
    return views.permute(0, 1, 3, 4, 5, 2).numpy().astype(np.float64)


def noise_pixels(spec: ViewSpec, count: int) -> list[np.ndarray]:
    shape = (spec.views * spec.decoded, spec.size, spec.size, spec.planes)
    return list(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


# --- image difference


def test_a_difference_is_that_of_consecutive_grey_frames(dataset: Dataset) -> None:
    spec = replace(TCP, modality="difference")
    assert (spec.channels, spec.frames, spec.span, TCP.span) == (1, 10, 21, 20)
    rows = [0, 5, 11]
    whole = params_for(spec, dataset, rows, seed=2)
    assert whole.frames.shape == (3, 3, 11) and whole.flips.any() and not whole.flips.all()
    batch_params = [whole.sample(i) for i in range(3)]
    pixels = [
        decode_views(dataset.read(r), d, SIZE, "difference") for r, d in zip(rows, batch_params, strict=True)
    ]
    found = run(spec, batch_params, pixels)
    for views, params, row in zip(found, batch_params, rows, strict=True):
        grey = decoded_luma(dataset.read(row), params, SIZE).reshape(3, 11, SIZE, SIZE, 1)
        expected = (grey[:, 1:] - grey[:, :-1]) / (255 * float(LUMA @ STD))
        error = np.abs(views - expected)
        assert error.mean() < 0.01 and np.percentile(error, 99) < 0.035 and expected.std() > 0.05
    edges = params_for(spec, dataset, [0], seed=2).frames[0]
    assert (np.diff(edges, axis=-1) == 1).all()


def test_a_difference_beyond_the_videos_end_is_zero(dataset: Dataset) -> None:
    spec = ViewSpec(offsets=(tuple(range(60)),), size=SIZE, modality="difference")
    (params,) = (params_for(spec, dataset, [3]).sample(0),)
    found = run(spec, [params], [decode_views(dataset.read(3), params, SIZE, "difference")])[0, 0]
    assert np.abs(found[:39]).max(axis=(1, 2, 3)).min() > 0 and not found[39:].any()


# --- flow


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """Levels of (u, v), (FRAMES, 2, HEIGHT, WIDTH): u brighter to the right, v darker to the bottom, both in time."""
    t, y, x = np.mgrid[:FRAMES, :HEIGHT, :WIDTH]
    u, v = 40 + 2 * t + 120 * x / WIDTH, 220 - 3 * t - 100 * y / HEIGHT + 20 * np.sin(x / 9)
    return np.round(np.stack([u, v], 1)).astype(np.uint8)


@pytest.mark.parametrize("jitter", [None, JITTER])
@pytest.mark.parametrize("kind", ["cpu", "hybrid", "gpu"])
def test_flow(fields: np.ndarray, tmp_path: Path, kind: str, jitter: Jitter | None) -> None:
    video = flow_video(tmp_path / "flow.mp4", fields, "vp9")
    spec = replace(TCP, modality="flow", jitter=jitter, colour_scope="frame")
    still = replace(spec, jitter=None)
    batch_params = samples(spec, 4)
    flips = np.stack([d.flips for d in batch_params])
    assert flips.any() and not flips.all()
    assert decode_views(video, batch_params[0], SIZE, "flow").shape == (30, SIZE, SIZE, 2)
    found = run(spec, batch_params, [video] * 4, kind)
    assert found.shape[-1] == 3
    for views, params, without in zip(found, batch_params, samples(still, 4), strict=True):
        levels = decoded_luma(video, params, SIZE, full=True, planes=2).reshape(3, 10, SIZE, SIZE, 2)
        uv = (levels - 127.5) / 127.5
        uv[params.flips, ..., 0] *= -1  # what moved to the right moves to the left in the mirror
        expected = np.concatenate([uv, np.zeros_like(uv[..., :1])], -1)
        if jitter is None:
            assert (views[..., 2] == 0).all()
            assert (params.colours == without.colours).all()
        else:
            expected = jittered(expected, spec, params)
        # DALI's resize and FFmpeg's differ by more than a level only at edges
        assert np.abs(views - expected).mean() < 0.01 and np.percentile(np.abs(views - expected), 99) < 0.04


def jittered(motion: np.ndarray, spec: ViewSpec, params: ViewParams) -> np.ndarray:
    """The same parameters' jitter of RGB, seen through RGB's own normalisation, on the levels of motion."""
    rgb = replace(spec, modality="rgb")
    twin = next(
        d for d in samples(rgb, 4) if (d.boxes == params.boxes).all() and (d.frames == params.frames).all()
    )
    maps = (
        twin.colours.astype(np.float64) * (255 * STD)[:, None]
    )  # to levels of RGB, undoing the normalisation
    maps[..., 3] += 255 * MEAN
    levels = MID_GREY + MID_GREY * motion
    out = np.einsum("vtck,vthwk->vthwc", maps[..., :3], levels) + maps[..., None, None, :, 3]
    return (out - 127.5) / 127.5


def test_flow_as_h264_keeps_its_levels(fields: np.ndarray, tmp_path: Path) -> None:
    video = flow_video(tmp_path / "flow.mp4", fields)
    (params,) = samples(replace(TCP, modality="flow"), 1)
    found = decode_views(video, params, SIZE, "flow").astype(np.float64)
    expected = decoded_luma(video, params, SIZE, full=True, planes=2)
    assert np.abs(found - expected).mean() < 0.4 and np.abs(found - expected).max() <= 2


def flow_dataset(out: Path, flows: list[bytes | None]) -> Dataset:
    """Videos whose pictures are no use: only their flow is."""
    facts = [{"num_frames": FRAMES, "fps": 25.0, "width": WIDTH, "height": HEIGHT}] * len(flows)
    return Dataset(write_dataset(out, [b"not a video"] * len(flows), facts, flows=flows))


def test_the_loader_reads_the_rows_flow(tmp_path: Path) -> None:
    levels = [(200, 100), (127, 60), (20, 250)]
    flows: list[bytes | None] = [
        flow_video(tmp_path / "f.mp4", np.tile(np.uint8(uv)[None, :, None, None], (FRAMES, 1, HEIGHT, WIDTH)))
        for uv in levels
    ]
    flowing = flow_dataset(tmp_path / "d", flows)
    with loader(flowing, replace(TCP, modality="flow"), batch_size=3, seed=2) as batches:
        batch = next(batches)
    assert batch["views"].shape == (3, 3, 3, 10, SIZE, SIZE)
    flips = set()
    for views, row, params in zip(batch["views"], batch["row"].tolist(), batch["params"], strict=True):
        for view, flip in zip(views, params.flips.tolist(), strict=True):
            u, v = ((level - 127.5) / 127.5 for level in levels[row])
            for plane, expected in zip(view, (-u if flip else u, v, 0), strict=True):
                np.testing.assert_allclose(plane, expected, atol=1.5 / 127.5)
            flips.add(flip)
    assert flips == {False, True}


def test_a_data_set_without_flow_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    spec = replace(TCP, modality="flow")
    with pytest.raises(InputError, match=r"has none; make it again with tools/make_shards.py --flow"):
        loader(dataset, spec)
    partly = flow_dataset(tmp_path / "d", [b"flow", None, b"flow", None])
    with pytest.raises(InputError, match=r"2 of 4 videos have no flow \(v001 is the first\)"):
        loader(partly, spec)


# --- colour


def kept_channels(params: ViewParams) -> np.ndarray:
    """(V, T): the channel that its colour map does not make 0."""
    kept = (params.colours != 0).any(-1)
    assert (kept.sum(-1) == 1).all()
    return kept.argmax(-1)


@pytest.mark.parametrize("scope, parts", [("view", (3, 10)), ("frame", (30, 1)), ("clip", (1, 30))])
def test_channel_drop(scope, parts) -> None:
    spec = replace(TCP, channel_drop=True, colour_scope=scope)
    batch_params, pixels = samples(spec, 6), noise_pixels(spec, 6)
    pixels[0][:10] //= 4  # a view of another deviation
    found, bank = run(spec, batch_params, pixels), noise_bank(NOISE_FRAMES, SIZE) / 30
    for views, params, picture in zip(found, batch_params, pixels, strict=True):
        kept, normal = kept_channels(params), (picture.reshape(views.shape) / 255 - MEAN) / STD
        alone = np.take_along_axis(normal, kept[..., None, None, None], -1)
        deviation = alone.reshape(*parts, -1).std((1, 2)).repeat(parts[1]).reshape(3, 10)
        expected = 0.01 * deviation[..., None, None, None] * bank[params.noise]
        np.put_along_axis(expected, kept[..., None, None, None], alone, -1)
        np.testing.assert_allclose(views, expected, atol=2e-4)
    assert {channel for d in batch_params for channel in kept_channels(d).ravel().tolist()} == {0, 1, 2}


def test_channels_are_dropped_alike_and_noise_is_noise() -> None:
    spec = replace(TCP, channel_drop=True)
    batch_params = samples(spec, 300)
    kept = np.stack([kept_channels(d) for d in batch_params])
    assert (kept == kept[..., :1]).all()  # a segment keeps one
    assert np.abs(np.bincount(kept[..., 0].ravel()) / 900 - 1 / 3).max() < 0.06
    orders = np.stack([d.noise for d in batch_params if d.noise is not None])
    assert orders.min() == 0 and orders.max() == NOISE_FRAMES - 1
    bank = noise_bank(NOISE_FRAMES, SIZE) / 30
    assert abs(bank.mean()) < 0.01 and abs(bank.std() - 1) < 0.01
    assert abs((bank**4).mean() / 3 - 1) < 0.05  # Gaussian
    flat = bank.reshape(NOISE_FRAMES, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(NOISE_FRAMES)).max() < 0.06


def test_bgr_in_0_to_255() -> None:
    spec = ViewSpec(offsets=((0, 1),), size=SIZE, levels="bgr-255")
    pixels = noise_pixels(spec, 2)
    found = run(spec, samples(spec, 2), pixels)
    np.testing.assert_array_equal(found, np.stack(pixels)[:, None, ..., ::-1])


def test_bgr_is_jittered_as_rgb() -> None:
    spec = ViewSpec(offsets=((0, 1, 2),), size=SIZE, jitter=JITTER, colour_scope="frame")
    pixels = noise_pixels(spec, 4)
    rgb = run(spec, samples(spec, 4), pixels)
    bgr = run(replace(spec, levels="bgr-255"), samples(replace(spec, levels="bgr-255"), 4), pixels)
    np.testing.assert_allclose(bgr[..., ::-1], 255 * (rgb * STD + MEAN), atol=1e-2)


def test_grey_from_a_channel_copies_one() -> None:
    always = Jitter(probability=0, grey=1.0, grey_from="channel")
    spec = ViewSpec(offsets=((0, 1, 2, 3),), size=SIZE, jitter=always, colour_scope="frame", levels="bgr-255")
    batch_params, pixels = samples(spec, 6), noise_pixels(spec, 6)
    sources = []
    for views, picture in zip(run(spec, batch_params, pixels), pixels, strict=True):
        for shown, frame in zip(views[0], picture, strict=True):
            (source,) = [c for c in range(3) if np.abs(shown - frame[..., c : c + 1]).max() < 1e-3]
            sources.append(source)
    assert set(sources) == {0, 1, 2}


# --- the gpu's graph, with DALI's CPU operators


@pytest.mark.parametrize("change", [{"modality": "difference"}, {"channel_drop": True}, {}])
def test_the_gpu_graph_on_the_cpu_shows_the_same_views(vp9_folder: Path, change: dict) -> None:
    dataset, spec = Dataset(vp9_folder), replace(TCP, **change)
    rows = [0, 2, 5]
    whole = params_for(spec, dataset, rows, seed=1)
    batch_params = [whole.sample(i) for i in range(3)]
    found = run(spec, batch_params, [dataset.read(row) for row in rows], "gpu")
    pixels = [
        decode_views(dataset.read(r), d, SIZE, spec.modality) for r, d in zip(rows, batch_params, strict=True)
    ]
    expected = run(spec, batch_params, pixels)
    difference = np.abs(found - expected)
    assert difference.mean() < 0.02 and difference.mean((3, 4, 5)).max() < 0.04 < 0.1 < expected.std()


DPC = ViewSpec(
    offsets=tuple(tuple(15 * v + 3 * t for t in range(5)) for v in range(8)),
    size=128, crop=0.875, jitter=JITTER, colour_scope="frame",
)  # fmt: skip
PACE = ViewSpec(
    offsets=(tuple(range(16)),) * 2, size=112, crop=0.875, jitter=JITTER, colour_scope="frame",
    paces=(1, 2, 3, 4), padding="wrap",
)  # fmt: skip
