"""Batches of the CPU graph against NumPy and torchvision; the GPU graphs, as far as a machine without one can go."""

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

import objectives
from objectives.vdim import VDIM, VDIMConfig
from pipelines.colour import IMAGENET_MEAN, IMAGENET_STD
from pipelines.decode import decode_views
from pipelines.draw import Draw, draw
from pipelines.graph import Graph, choose_placement, define
from pipelines.plan import Jitter, ViewPlan, plain
from shards import Dataset, InputError
from tests.pipelines.reference import decoded_views, disc, draw_for, lab, turned

SIZE = 48
OFFSETS = ((0, 2, 4, 6), (8, 9, 10, 11), (12, 13, 14, 15))
STRONG = Jitter(0.4, 0.4, 0.4, 0.2, probability=0.9, grey=0.3)


def smooth_pixels(plan: ViewPlan, samples: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of slow waves in all three channels, which interpolation cannot blur."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: plan.size, : plan.size] / plan.size
    out = []
    for _ in range(samples):
        a, b, phase = (rng.uniform(-1, 1, (plan.views * plan.frames, 1, 1, 3)) for _ in range(3))
        wave = np.sin(2 * np.pi * (a * x[..., None] + b * y[..., None] + phase))
        out.append(np.round(127.5 + 110 * wave).astype(np.uint8))
    return out


def drawn_for(plan: ViewPlan, samples: int, seed: int = 0) -> list[Draw]:
    ones = np.ones(samples, dtype=np.int64)
    whole = draw(plan, np.arange(samples), 60 * ones, 176 * ones, 144 * ones, seed=seed, epoch=0)
    return [whole.sample(i) for i in range(samples)]


def run(plan: ViewPlan, draws: list[Draw], pixels: list[np.ndarray]) -> np.ndarray:
    """Views of the CPU graph as (B, V, T, H, W, C)."""
    views = Graph(plan, len(draws), "cpu", threads=2).run(draws, pixels)
    return views.permute(0, 1, 3, 4, 5, 2).numpy().astype(np.float64)


def expected_views(plan: ViewPlan, drawn: Draw, pixels: np.ndarray, *, rotate: bool = True) -> np.ndarray:
    """(V, T, H, W, C) from one sample's pixels."""
    out = np.empty((plan.views, plan.frames, plan.size, plan.size, 3))
    for v, t in np.ndindex(plan.views, plan.frames):
        frame = pixels[v * plan.frames + t].astype(np.float64)
        if plan.rotation and rotate:
            frame = turned(frame, float(drawn.angles[v]))
        colours = drawn.colours[v, t].astype(np.float64)
        if plan.lab_drop:
            dropped = int(np.flatnonzero((colours == 0).all(-1)).item())
            out[v, t] = (lab(frame) - [50, 0, 0]) / [25, 10, 10]
            out[v, t, ..., dropped] = 0
        else:
            out[v, t] = np.einsum("ck,hwk->hwc", colours[:, :3], frame) + colours[:, 3]
    return out


@pytest.mark.parametrize("scope", ["frame", "view", "clip"])
def test_jitter_and_grey(scope) -> None:
    plan = ViewPlan(offsets=OFFSETS, size=SIZE, jitter=STRONG, colour_scope=scope)
    draws, pixels = drawn_for(plan, 5), smooth_pixels(plan, 5)
    for found, drawn, picture in zip(run(plan, draws, pixels), draws, pixels, strict=True):
        np.testing.assert_allclose(found, expected_views(plan, drawn, picture), atol=1e-4)


def test_without_jitter_the_views_are_normalised_rgb() -> None:
    plan = ViewPlan(offsets=OFFSETS, size=SIZE)
    draws, pixels = drawn_for(plan, 2), smooth_pixels(plan, 2)
    expected = (np.stack(pixels).reshape(2, 3, 4, SIZE, SIZE, 3) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(run(plan, draws, pixels), expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["frame", "view", "clip"])
def test_lab_with_a_channel_dropped(scope) -> None:
    plan = ViewPlan(offsets=OFFSETS, size=SIZE, lab_drop=True, colour_scope=scope)
    draws, pixels = drawn_for(plan, 5), smooth_pixels(plan, 5)
    pixels[0][:, :4] = 0  # the linear part of both curves
    pixels[0][:, 4:8] = 7
    pixels[0][:, 8:12] = 255
    for found, drawn, picture in zip(run(plan, draws, pixels), draws, pixels, strict=True):
        np.testing.assert_allclose(found, expected_views(plan, drawn, picture), atol=0.01)


def in_levels(difference: np.ndarray) -> np.ndarray:
    return difference * 255 * IMAGENET_STD


def test_rotation() -> None:
    plan = ViewPlan(offsets=OFFSETS, size=SIZE, rotation=30)
    draws, pixels = drawn_for(plan, 5), smooth_pixels(plan, 5)
    inside = disc(SIZE)
    angles = np.concatenate([d.angles for d in draws])
    assert angles.min() < -15 and angles.max() > 15
    for found, drawn, picture in zip(run(plan, draws, pixels), draws, pixels, strict=True):
        error = in_levels(found - expected_views(plan, drawn, picture))[:, :, inside]
        assert np.abs(error).max() < 2 and np.abs(error).mean() < 0.5
        unturned = in_levels(found - expected_views(plan, drawn, picture, rotate=False))[:, :, inside]
        assert np.abs(unturned).mean() > 1  # the comparison sees a rotation


def test_a_positive_angle_is_counter_clockwise_and_corners_become_black() -> None:
    plan = ViewPlan(offsets=((0,),), size=SIZE, rotation=90)
    (drawn,) = drawn_for(plan, 1)
    drawn.angles[:] = 90
    picture = np.full((1, SIZE, SIZE, 3), 60, np.uint8)
    picture[0, :, SIZE // 2 :] = 220  # bright on the right: turned counter-clockwise, bright on top
    found = in_levels(run(plan, [drawn], [picture])[0, 0, 0]) + 255 * IMAGENET_MEAN
    assert np.abs(found[4 : SIZE // 2 - 2, 4:-4] - 220).max() < 1
    assert np.abs(found[SIZE // 2 + 2 : -4, 4:-4] - 60).max() < 1
    drawn.angles[:] = 45
    found = in_levels(run(plan, [drawn], [picture])[0, 0, 0]) + 255 * IMAGENET_MEAN
    for corner in (found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]):
        np.testing.assert_allclose(corner, 0, atol=0.01)


@pytest.mark.parametrize("lab_drop", [False, True])
def test_rotation_then_colour(lab_drop) -> None:
    plan = ViewPlan(
        offsets=OFFSETS, size=SIZE, rotation=20, box_scope="view", colour_scope="view", groups=(0, 1, 1),
        lab_drop=lab_drop, jitter=None if lab_drop else STRONG,
    )  # fmt: skip
    draws, pixels = drawn_for(plan, 4), smooth_pixels(plan, 4)
    for found, drawn, picture in zip(run(plan, draws, pixels), draws, pixels, strict=True):
        error = np.abs(found - expected_views(plan, drawn, picture))[:, :, disc(SIZE)]
        assert np.percentile(error, 99) < (0.15 if lab_drop else 0.04) and error.mean() < 0.03


def test_the_whole_way_from_a_file(dataset: Dataset) -> None:
    """Box, flip, rotation and colour from the video's bytes on, against the same in floating point."""
    plan = ViewPlan(
        offsets=((0, 5), (8, 12), (20, 29)), size=64, rotation=15, jitter=STRONG,
        box_scope="view", colour_scope="view", groups=(0, 1, 1),
    )  # fmt: skip
    rows = [0, 7, 13]
    whole = draw_for(plan, dataset, rows, seed=3)
    draws = [whole.sample(i) for i in range(3)]
    pixels = [decode_views(dataset.read(row), d, 64) for row, d in zip(rows, draws, strict=True)]
    for found, drawn, row in zip(run(plan, draws, pixels), draws, rows, strict=True):
        expected = expected_views(plan, drawn, decoded_views(dataset.read(row), drawn, 64))
        error = np.abs(in_levels(found - expected))[:, :, disc(64)]
        assert error.mean() < 1 and np.percentile(error, 99) < 4


@pytest.mark.parametrize("extra", [{}, {"rotation": 10.0}, {"lab_drop": True}])
def test_layout(extra) -> None:
    plan = ViewPlan(offsets=OFFSETS, size=SIZE, **extra)
    graph = Graph(plan, 4, "cpu", threads=1)
    for samples in (4, 2, 1):  # up to batch_size
        draws, pixels = drawn_for(plan, samples), smooth_pixels(plan, samples)
        views = graph.run(draws, pixels)
        assert views.shape == (samples, 3, 3, 4, SIZE, SIZE)
        assert views.dtype == torch.float32 and views.device.type == "cpu"
        assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_batch_outlives_the_next() -> None:
    plan = ViewPlan(offsets=((0, 1),), size=SIZE)
    graph, draws = Graph(plan, 2, "cpu", threads=1), drawn_for(plan, 2)
    first = graph.run(draws, smooth_pixels(plan, 2, seed=1))
    kept = first.clone()
    later = [graph.run(draws, smooth_pixels(plan, 2, seed=n)) for n in range(2, 6)]
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
        output = define(VDIM.view_plan(config), placement)
    assert output.device == "gpu"


@pytest.mark.parametrize("placement", ["gpu", "hybrid"])
def test_gpu_graphs_of_every_objective_are_defined(placement) -> None:
    found = objectives.available()
    assert "vdim" in found
    for objective in found.values():
        for config in (objective.Config(), objective.small()):
            plan = objective.view_plan(config)
            for one in (plan, plain(plan)):
                with Pipeline(4, 2, 0):
                    assert define(one, placement).device == "gpu"


@pytest.mark.parametrize("extra", [{"jitter": STRONG}, {"lab_drop": True}, {"rotation": 20.0}])
@pytest.mark.parametrize("short", ["edge", "loop"])
def test_the_gpu_graph_on_the_cpu_shows_the_same_views(vp9_folder, extra, short) -> None:
    dataset = Dataset(vp9_folder)
    plan = ViewPlan(
        offsets=((0, 5, 9), (20, 33, 45), (3, 4, 44)), size=64, box_scope="view", colour_scope="view",
        groups=(0, 1, 1), short=short, **extra,
    )  # fmt: skip
    rows = [0, 2, 5]
    whole = draw_for(plan, dataset, rows, seed=1)
    draws = [whole.sample(i) for i in range(3)]
    assert whole.flips.any() and not whole.flips.all()
    encoded = [np.frombuffer(dataset.read(row), np.uint8) for row in rows]
    found = Graph(plan, 3, "gpu", threads=2, decoder="cpu").run(draws, encoded)
    pixels = [decode_views(dataset.read(row), d, 64) for row, d in zip(rows, draws, strict=True)]
    expected = Graph(plan, 3, "cpu", threads=2).run(draws, pixels)
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
