"""The cpu placement's NumPy against the DALI graph that follows a GPU's or another CPU's decoder."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from pipelines.graph import Graph
from pipelines.painter import Painter

from pipelines.sampling import sample_params
from pipelines.views import Jitter, ViewSpec

SIZE = 48
JITTER = Jitter(0.5, 0.5, 0.5, 0.25, probability=0.8, grey=0.25)
SPEC = ViewSpec(offsets=((0, 1, 2), (3, 4, 5), (6, 7, 8)), size=SIZE, box_scope="view", colour_scope="view")


def drawn_for(spec: ViewSpec, samples: int, seed: int = 0):
    ones = np.ones(samples, dtype=np.int64)
    whole = sample_params(spec, np.arange(samples), 60 * ones, 176 * ones, 144 * ones, seed=seed, epoch=0)
    return [whole.sample(i) for i in range(samples)]


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
def test_the_same_views_as_dalis(change: dict, mean: float, most: float) -> None:
    spec = replace(SPEC, **change)
    batch_params, pixels = drawn_for(spec, 3), pixels_for(spec, 3)
    found = Graph(spec, 3, "cpu", threads=2).run(batch_params, pixels)
    expected = Graph(spec, 3, "hybrid", threads=2, decoder="cpu").run(batch_params, pixels)
    assert found.shape == expected.shape and found.stride() == expected.stride()
    difference = (found - expected).abs()
    assert difference.mean() < mean and difference.max() < most and expected.std() > 0.05


@pytest.mark.parametrize("change", [{}, {"lab_drop": True}, {"modality": "difference"}])
def test_the_same_turn_as_dalis(change: dict) -> None:
    spec = replace(SPEC, rotation=40.0, **change)
    batch_params, pixels = drawn_for(spec, 3), pixels_for(spec, 3)
    found = Graph(spec, 3, "cpu", threads=2).run(batch_params, pixels)
    expected = Graph(spec, 3, "hybrid", threads=2, decoder="cpu").run(batch_params, pixels)
    assert (found - expected).abs().mean() < 0.01 < 0.1 < expected.std()


def test_clips_of_a_video_are_painted_one_after_the_other() -> None:
    spec = replace(SPEC, channel_drop=True, colour_scope="clip")
    one, other = drawn_for(spec, 2, seed=1), drawn_for(spec, 2, seed=2)
    whole = [
        replace(a, **{name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in
                      ("frames", "boxes", "flips", "angles", "colours", "noise")})
        for a, b in zip(one, other, strict=True)
    ]  # fmt: skip
    pixels = pixels_for(spec, 2, clips=2)
    found = Painter(spec, 2, threads=2, clips=2).run(whole, pixels)
    half = spec.views * spec.decoded
    parts = [
        Painter(spec, 2, threads=1).run(batch_params, [p[part] for p in pixels])
        for batch_params, part in ((one, slice(half)), (other, slice(half, None)))
    ]
    assert torch.equal(found, torch.stack(parts, 1).flatten(0, 1))


def test_packed_pixels_give_what_planes_give() -> None:
    batch_params, planes = drawn_for(SPEC, 2), pixels_for(SPEC, 2)
    painter = Painter(SPEC, 2, threads=1)
    packed = [np.ascontiguousarray(p) for p in planes]
    assert torch.equal(painter.run(batch_params, planes), painter.run(batch_params, packed))


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    painter, batch_params = Painter(SPEC, 2, threads=1), drawn_for(SPEC, 2)
    held = [painter.run(batch_params, pixels_for(SPEC, 2, seed=n)) for n in range(3)]
    copies, places = [views.clone() for views in held], {views.data_ptr() for views in held}
    assert len(places) == 3
    kept = held.pop()[:, 1]  # a part of a batch keeps all of it
    del held
    gc.collect()
    later = [painter.run(batch_params, pixels_for(SPEC, 2, seed=n)) for n in range(10, 13)]
    assert torch.equal(kept, copies[2][:, 1])
    assert len({views.data_ptr() for views in later} & places) == 2
    assert kept.untyped_storage().data_ptr() not in {views.data_ptr() for views in later}
