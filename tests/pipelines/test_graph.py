"""Batches of the CPU graph against NumPy and torchvision; the GPU graphs, as far as a machine without one can go."""

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline
from pipelines.graph import Graph, choose_placement, define

import objectives
from objectives.vdim import VDIM, VDIMConfig
from pipelines.colour import IMAGENET_MEAN, IMAGENET_STD
from pipelines.decode import decode_views
from pipelines.sampling import ViewParams, sample_params
from pipelines.views import Jitter, ViewSpec, eval_view
from shards import Dataset, InputError
from tests.pipelines.reference import decoded_views, disc, draw_for, lab, turned

SIZE = 48
OFFSETS = ((0, 2, 4, 6), (8, 9, 10, 11), (12, 13, 14, 15))
STRONG = Jitter(0.4, 0.4, 0.4, 0.2, probability=0.9, grey=0.3)


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


def drawn_for(spec: ViewSpec, samples: int, seed: int = 0) -> list[ViewParams]:
    ones = np.ones(samples, dtype=np.int64)
    whole = sample_params(spec, np.arange(samples), 60 * ones, 176 * ones, 144 * ones, seed=seed, epoch=0)
    return [whole.sample(i) for i in range(samples)]


def run(spec: ViewSpec, batch_params: list[ViewParams], pixels: list[np.ndarray]) -> np.ndarray:
    """Views of the CPU graph as (B, V, T, H, W, C)."""
    views = Graph(spec, len(batch_params), "cpu", threads=2).run(batch_params, pixels)
    return views.permute(0, 1, 3, 4, 5, 2).numpy().astype(np.float64)


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
def test_jitter_and_grey(scope) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, jitter=STRONG, colour_scope=scope)
    batch_params, pixels = drawn_for(spec, 5), smooth_pixels(spec, 5)
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        np.testing.assert_allclose(found, expected_views(spec, params, picture), atol=1e-4)


def test_without_jitter_the_views_are_normalised_rgb() -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE)
    batch_params, pixels = drawn_for(spec, 2), smooth_pixels(spec, 2)
    expected = (np.stack(pixels).reshape(2, 3, 4, SIZE, SIZE, 3) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(run(spec, batch_params, pixels), expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["frame", "view", "clip"])
def test_lab_with_a_channel_dropped(scope) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, lab_drop=True, colour_scope=scope)
    batch_params, pixels = drawn_for(spec, 5), smooth_pixels(spec, 5)
    pixels[0][:, :4] = 0  # the linear part of both curves
    pixels[0][:, 4:8] = 7
    pixels[0][:, 8:12] = 255
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        np.testing.assert_allclose(found, expected_views(spec, params, picture), atol=0.01)


def in_levels(difference: np.ndarray) -> np.ndarray:
    return difference * 255 * IMAGENET_STD


def test_rotation() -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, rotation=30)
    batch_params, pixels = drawn_for(spec, 5), smooth_pixels(spec, 5)
    inside = disc(SIZE)
    angles = np.concatenate([d.angles for d in batch_params])
    assert angles.min() < -15 and angles.max() > 15
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        error = in_levels(found - expected_views(spec, params, picture))[:, :, inside]
        assert np.abs(error).max() < 2 and np.abs(error).mean() < 0.5
        unturned = in_levels(found - expected_views(spec, params, picture, rotate=False))[:, :, inside]
        assert np.abs(unturned).mean() > 1  # the comparison sees a rotation


def test_a_positive_angle_is_counter_clockwise_and_corners_become_black() -> None:
    spec = ViewSpec(offsets=((0,),), size=SIZE, rotation=90)
    (params,) = drawn_for(spec, 1)
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
def test_rotation_then_colour(lab_drop) -> None:
    spec = ViewSpec(
        offsets=OFFSETS, size=SIZE, rotation=20, box_scope="view", colour_scope="view", groups=(0, 1, 1),
        lab_drop=lab_drop, jitter=None if lab_drop else STRONG,
    )  # fmt: skip
    batch_params, pixels = drawn_for(spec, 4), smooth_pixels(spec, 4)
    for found, params, picture in zip(run(spec, batch_params, pixels), batch_params, pixels, strict=True):
        error = np.abs(found - expected_views(spec, params, picture))[:, :, disc(SIZE)]
        assert np.percentile(error, 99) < (0.15 if lab_drop else 0.04) and error.mean() < 0.03


def test_the_whole_way_from_a_file(dataset: Dataset) -> None:
    """Box, flip, rotation and colour from the video's bytes on, against the same in floating point."""
    spec = ViewSpec(
        offsets=((0, 5), (8, 12), (20, 29)), size=64, rotation=15, jitter=STRONG,
        box_scope="view", colour_scope="view", groups=(0, 1, 1),
    )  # fmt: skip
    rows = [0, 7, 13]
    whole = draw_for(spec, dataset, rows, seed=3)
    batch_params = [whole.sample(i) for i in range(3)]
    pixels = [decode_views(dataset.read(row), d, 64) for row, d in zip(rows, batch_params, strict=True)]
    for found, params, row in zip(run(spec, batch_params, pixels), batch_params, rows, strict=True):
        expected = expected_views(spec, params, decoded_views(dataset.read(row), params, 64))
        error = np.abs(in_levels(found - expected))[:, :, disc(64)]
        assert error.mean() < 1 and np.percentile(error, 99) < 4


@pytest.mark.parametrize("extra", [{}, {"rotation": 10.0}, {"lab_drop": True}])
def test_layout(extra) -> None:
    spec = ViewSpec(offsets=OFFSETS, size=SIZE, **extra)
    graph = Graph(spec, 4, "cpu", threads=1)
    for samples in (4, 2, 1):  # up to batch_size
        batch_params, pixels = drawn_for(spec, samples), smooth_pixels(spec, samples)
        views = graph.run(batch_params, pixels)
        assert views.shape == (samples, 3, 3, 4, SIZE, SIZE)
        assert views.dtype == torch.float32 and views.device.type == "cpu"
        assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_batch_outlives_the_next() -> None:
    spec = ViewSpec(offsets=((0, 1),), size=SIZE)
    graph, batch_params = Graph(spec, 2, "cpu", threads=1), drawn_for(spec, 2)
    first = graph.run(batch_params, smooth_pixels(spec, 2, seed=1))
    kept = first.clone()
    later = [graph.run(batch_params, smooth_pixels(spec, 2, seed=n)) for n in range(2, 6)]
    assert torch.equal(first, kept)
    assert not torch.equal(first, later[0])


@pytest.mark.parametrize("placement", ["gpu", "hybrid"])
@pytest.mark.parametrize(
    "config",
    [
        VDIMConfig(),
        VDIMConfig(temporal_difference=False),
        VDIMConfig(colour="lab"),
        VDIMConfig(rotation=15.0, offset=32, downsample=3),
        VDIMConfig(colour="lab", rotation=15.0, temporal_difference=False, downsample=1),
    ],
)
def test_gpu_graphs_of_vdim_are_defined(placement, config) -> None:
    with Pipeline(4, 2, 0):
        output = define(VDIM.view_spec(config), placement)
    assert output.device == "gpu"


@pytest.mark.parametrize("placement", ["gpu", "hybrid"])
def test_gpu_graphs_of_every_objective_are_defined(placement) -> None:
    found = objectives.available()
    assert "vdim" in found
    for objective in found.values():
        for config in (objective.Config(), objective.small()):
            spec = objective.view_spec(config)
            for one in (spec, eval_view(spec)):
                with Pipeline(4, 2, 0):
                    assert define(one, placement).device == "gpu"


@pytest.mark.parametrize("extra", [{"jitter": STRONG}, {"lab_drop": True}, {"rotation": 20.0}])
@pytest.mark.parametrize("padding", ["repeat_last", "wrap"])
def test_the_gpu_graph_on_the_cpu_shows_the_same_views(vp9_folder, extra, padding) -> None:
    dataset = Dataset(vp9_folder)
    spec = ViewSpec(
        offsets=((0, 5, 9), (20, 33, 45), (3, 4, 44)), size=64, box_scope="view", colour_scope="view",
        groups=(0, 1, 1), padding=padding, **extra,
    )  # fmt: skip
    rows = [0, 2, 5]
    whole = draw_for(spec, dataset, rows, seed=1)
    batch_params = [whole.sample(i) for i in range(3)]
    assert whole.flips.any() and not whole.flips.all()
    encoded = [np.frombuffer(dataset.read(row), np.uint8) for row in rows]
    found = Graph(spec, 3, "gpu", threads=2, decoder="cpu").run(batch_params, encoded)
    pixels = [decode_views(dataset.read(row), d, 64) for row, d in zip(rows, batch_params, strict=True)]
    expected = Graph(spec, 3, "cpu", threads=2).run(batch_params, pixels)
    assert found.shape == expected.shape and found.stride() == expected.stride()
    difference = (found - expected).abs()
    assert difference.mean() < 0.015
    # each frame of each view on its own: another frame, box or flip would show
    assert difference.mean((2, 4, 5)).max() < 0.025


def test_choosing_a_placement() -> None:
    assert choose_placement("cpu") == "cpu"
    with pytest.raises(InputError, match="choose one of"):
        choose_placement("tpu")
    if not torch.cuda.is_available():
        assert choose_placement("auto") == "cpu"
        for name in ("gpu", "hybrid"):
            with pytest.raises(InputError, match="no CUDA GPU"):
                choose_placement(name)


def test_a_gpu_without_its_video_decoder_says_what_the_container_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_reach(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("pipelines.graph.ctypes.CDLL", out_of_reach)
    with pytest.raises(InputError, match=r"NVIDIA_DRIVER_CAPABILITIES=\S*video"):
        choose_placement("gpu")
    assert choose_placement("auto") == choose_placement("hybrid") == "hybrid"
