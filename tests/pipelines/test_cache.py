"""Decoded videos kept in memory: the same views as without, whichever are kept, and nothing read twice."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.backends.cpu import Cache, Decoded, Frames, chosen
from pipelines.decode import decode_views
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError
from shards.video.encode import Encoding
from shards.video.mp4 import DecodeError
from shards.video.transcode import transcode
from tests.pipelines.conftest import FRAMES
from tests.pipelines.reference import flow_video, loader, made, params_for, render, write_dataset
from tests.pipelines.test_decode import hand_params, hurt
from tests.pipelines.test_loader import SPEC, assert_same, damaged, quarantined

VIDEO = FRAMES * 176 * 144 * 3 // 2  # bytes of a decoded video of the demo set
GIB = 2**30


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 300))
def test_as_many_videos_as_fit_are_kept(sizes, limit) -> None:
    kept = chosen(np.array(sizes), limit)
    count = 0
    while count < len(sizes) and sum(sorted(sizes)[: count + 1]) <= limit:
        count += 1
    assert kept.sum() == count and np.array(sizes)[kept].sum() <= limit
    assert np.array_equal(kept, chosen(np.array(sizes), limit))


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_what_is_kept_gives_the_pixels_of_the_file(
    dataset: Dataset, codec: Literal["h264", "hevc", "vp9", "mjpeg"]
) -> None:
    # 142: rows that are no multiple of 4
    video = transcode(
        dataset.read(5), Encoding(codec=codec, short_side=142, preset="ultrafast", multiple=1)
    ).data
    kept = Decoded.of(video, list(range(FRAMES)))
    assert kept.planes.shape == (FRAMES, 213, 174) and kept.planes.dtype == np.uint8
    for box, flip in (((0, 0, 174, 142), False), ((30, 18, 100, 64), True)):
        for frames, modality in (([[0, 17, 39], [3, 3, 38]], "rgb"), ([[4, 5, 6]], "difference")):
            params = hand_params(frames, box, flip)
            np.testing.assert_array_equal(
                kept.crop(params, 48, modality), decode_views(video, params, 48, modality)
            )
    with pytest.raises(DecodeError):
        kept.crop(hand_params([[FRAMES]], (0, 0, 64, 64)), 48, "rgb")
    with pytest.raises(DecodeError, match="box ends at"):
        kept.crop(hand_params([[0]], (120, 0, 64, 64)), 48, "rgb")


def test_flow_is_kept_as_well(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 2, 64, 96)).astype(np.uint8)
    video = flow_video(tmp_path / "flow.mp4", values)
    params = hand_params([[1, 5]], (8, 4, 60, 50), True)
    kept = Decoded.of(video, list(range(6))).crop(params, 32, "flow")
    np.testing.assert_array_equal(kept, decode_views(video, params, 32, "flow"))


class Counted(Dataset):
    """A data set that counts how often each row's video is read."""

    reads: Counter

    def read(self, row: int, component: str = "mp4") -> bytes:
        self.reads[row] += 1
        return super().read(row, component)


def counted(folder: Path) -> Counted:
    dataset = Counted(folder)
    dataset.reads = Counter()
    return dataset


def batches(dataset: Dataset, count: int, *, start: int = 0, **options: Any) -> list[dict[str, Any]]:
    with loader(dataset, SPEC, **options) as batches:
        batches.load_state_dict({"samples": 4 * start})
        return list(islice(batches, count))


@pytest.mark.parametrize("videos", [5, 18])
@pytest.mark.parametrize("clips", [1, 2])
def test_a_host_cache_changes_nothing_but_what_is_read(demo_folder: Path, videos: int, clips: int) -> None:
    dataset = counted(demo_folder)
    options = {"clips": clips, "prefetch": 0, "threads": 1}
    cached = batches(dataset, 12, cache="host", cache_gib=videos * VIDEO / GIB, **options)
    for one, other in zip(cached, batches(Dataset(demo_folder), 12, **options), strict=True):
        assert_same(one, other)
    served = Counter(row for batch in cached for row in batch["row"][::clips].tolist())
    # the demo set's videos are of one size: the first of equals
    assert {row: dataset.reads[row] for row in served} == {
        row: 1 if row < videos else count for row, count in served.items()
    }


def test_a_gpu_cache_shows_the_views_of_the_file(vp9_folder: Path) -> None:
    """The graph that is fed from GPU memory, fed from the computer's."""
    dataset = Dataset(vp9_folder)
    options: dict[str, Any] = {"backend": "gpu"}
    cached = batches(dataset, 6, cache="gpu", cache_gib=1, **options)
    for one, other in zip(cached, batches(dataset, 6), strict=True):
        assert one["row"].tolist() == other["row"].tolist()
        difference = (one["views"] - other["views"]).abs()
        assert difference.mean() < 0.015 and difference.mean((2, 3, 4, 5)).max() < 0.03
    # what is in the cache already, or is not, changes no bit
    for one, other in zip(
        batches(dataset, 3, start=3, cache="gpu", cache_gib=1, **options), cached[3:], strict=True
    ):
        assert_same(one, other)


def test_a_batch_of_kept_and_other_videos_keeps_its_order(vp9_folder: Path) -> None:
    dataset = Dataset(vp9_folder)
    sizes = Cache(dataset, np.arange(8), "mp4", "gpu", 1).sizes
    options: dict[str, Any] = {"backend": "gpu"}
    part, whole, none = (
        batches(dataset, 4, **options, **extra)
        for extra in (
            {"cache": "gpu", "cache_gib": 4 * sizes.max() / GIB},
            {"cache": "gpu", "cache_gib": 1},
            {},
        )
    )
    kept = chosen(sizes, 4 * int(sizes.max()))
    assert 0 < kept.sum() < 8
    for mixed, all_kept, decoded in zip(part, whole, none, strict=True):
        for place, row in enumerate(mixed["row"].tolist()):
            expected = all_kept if kept[row] else decoded
            assert torch.equal(mixed["views"][place], expected["views"][place])
        assert mixed["views"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


FROM_MEMORY = {
    "rgb": ViewSpec(offsets=((0, 5, 9), (20, 33, 38)), size=64, box_scope="view", jitter=Jitter()),
    "rotated": ViewSpec(offsets=((0, 5, 9),), size=64, rotation=15),
    "lab": ViewSpec(offsets=((0, 5),), size=64, lab_drop=True),
    "difference": ViewSpec(offsets=((0, 1, 2), (7, 8, 9)), size=64, modality="difference"),
}


@pytest.mark.parametrize(("codec", "colorspace"), [("h264", None), ("mjpeg", None), ("h264", 1)])
@pytest.mark.parametrize("name", FROM_MEMORY)
def test_the_graph_from_memory_shows_what_ffmpeg_cuts(
    dataset: Dataset, name: str, codec: Literal["h264", "mjpeg"], colorspace: int | None
) -> None:
    """colorspace: what the videos say they are, in FFmpeg's numbers: 1 is BT.709."""
    spec, rows = FROM_MEMORY[name], [0, 7]
    videos = [
        transcode(dataset.read(row), Encoding(codec=codec, short_side=144, preset="ultrafast")).data
        for row in rows
    ]
    whole = params_for(spec, dataset, rows, seed=3)
    batch_params = [whole.sample(place) for place in range(2)]
    decoded = [Decoded.of(video, list(range(FRAMES))) for video in videos]
    if colorspace is not None:
        decoded = [replace(video, colorspace=colorspace) for video in decoded]
    pixels = [v.crop(d, 64, spec.modality) for v, d in zip(decoded, batch_params, strict=True)]
    expected = render(made("cpu", spec, 2), batch_params, pixels)
    kept = [Frames.of(video, torch.device("cpu")) for video in decoded]
    found = render(made("memory", spec, 2), batch_params, kept)
    assert found.shape == expected.shape and found.stride() == expected.stride()
    difference = (found - expected).abs()
    assert difference.mean() < (0.05 if name == "lab" else 0.01) and expected.std() > 0.05
    assert difference.mean((2, 4, 5)).max() < (0.1 if name == "lab" else 0.02)


def test_the_graph_from_memory_shows_flow(tmp_path: Path) -> None:
    spec = ViewSpec(offsets=((0, 2), (3, 5)), size=32, modality="flow", box_scope="view", crop=0.75)
    t, _, x = np.mgrid[:6, :64, :96]
    values = np.round(np.stack([20 * t + x, 250 - 20 * t - x], 1)).astype(np.uint8)
    video = flow_video(tmp_path / "flow.mp4", values)
    boxes = np.array([[8, 4, 48, 48], [20, 10, 48, 48]], np.int32)
    params = replace(hand_params([[0, 2], [3, 5]], flip=True), boxes=boxes)
    maps = np.zeros((2, 2, 3, 3), np.float32)
    maps[..., 0, 0] = maps[..., 1, 1] = 1
    params = replace(params, colours=maps)
    expected = render(made("cpu", spec, 1), [params], [decode_views(video, params, 32, "flow")])
    kept = Frames.of(Decoded.of(video, list(range(6))), torch.device("cpu"))
    found = render(made("memory", spec, 1), [params], [kept])
    assert (found - expected).abs().max() <= 2 and expected.std() > 20


def test_damage_costs_the_same_rows_as_without_a_cache(
    demo_folder: Path, vp9_folder: Path, tmp_path: Path
) -> None:
    found = {}
    for cache in (None, "host", "gpu"):
        dataset = damaged(demo_folder, tmp_path / str(cache), [2, 11])
        found[cache] = batches(dataset, 8, cache=cache, cache_gib=1)
        assert sorted(quarantined(dataset)) == sorted(dataset.column("key")[[2, 11]])
    for host, gpu, without in zip(found["host"], found["gpu"], found[None], strict=True):
        assert_same(host, without)
        assert gpu["key"] == without["key"]


def test_damage_where_nobody_looks_costs_nothing(dataset: Dataset, tmp_path: Path) -> None:
    """A video is quarantined for the frames that a clip shows, not for others that the cache would have kept."""
    video = transcode(dataset.read(0), Encoding(short_side=144, gop=8)).data
    facts = {"num_frames": FRAMES, "fps": 25.0, "width": 176, "height": 144}
    out = Dataset(write_dataset(tmp_path / "d", [hurt(video, 33), video], [facts] * 2))
    spec = ViewSpec(offsets=((0, 1),), size=32, padding="wrap", centre=True)
    reached = False
    for epoch in range(3):
        params = params_for(spec, out, [0], seed=0, epoch=epoch)
        reached |= bool((params.frames // 8 == 33 // 8).any())
    assert not reached
    with loader(out, spec, batch_size=2, seed=0, prefetch=0, cache="host", cache_gib=1) as batches:
        seen = [sorted(batch["row"].tolist()) for batch in islice(batches, 3)]
    assert seen == [[0, 1]] * 3 and not (out.path / "quarantine.jsonl").exists()


def test_a_video_of_another_size_than_the_table_says_is_not_kept(dataset: Dataset) -> None:
    cache = Cache(dataset, np.arange(18), "mp4", "host", 1)
    smaller = transcode(dataset.read(3), Encoding(short_side=100, preset="ultrafast", multiple=1)).data
    assert cache.get(3, lambda: smaller) is None
    assert isinstance(cache.get(4, lambda: dataset.read(4)), Decoded)


def test_what_fits_is_said(dataset: Dataset) -> None:
    rows = np.arange(18)
    assert "18 of 18 videos" in Cache(dataset, rows, "mp4", "host", 1).describe()
    line = Cache(dataset, rows, "mp4", "host", 7.5 * VIDEO / GIB).describe()
    assert "7 of 18 videos" in line and "--cache-gib 0.1" in line and "host memory" in line


@pytest.mark.parametrize("gib", [0, -1, float("nan"), 1e6])
def test_a_cache_that_cannot_be(dataset: Dataset, gib: float) -> None:
    with pytest.raises(InputError, match="--cache-gib"):
        Cache(dataset, np.arange(18), "mp4", "host", gib)


def test_a_cache_makes_no_more_than_it_needs(dataset: Dataset) -> None:
    """One backend where it decodes on the CPU anyway; no memory is lent to a batch that NVDEC decodes or the GPU keeps."""
    with loader(dataset, SPEC, cache="host", cache_gib=2 * VIDEO / GIB, processes=2) as made:
        list(islice(made, 3))
        assert len(made.backend.processes()) == len(set(made.backend.processes())) == 2
    for name, lent in (("gpu", False), ("hybrid", True)):
        with loader(dataset, SPEC, cache="gpu", cache_gib=1, backend=name) as made:
            batch = made.sampler.batch(0)
            assert batch and (made.backend.buffer(batch.samples)[0] is not None) == lent


def test_a_gpu_cache_needs_a_gpu(dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"--cache gpu.*--cache host"):
        loader(dataset, SPEC, cache="gpu", on_cpu_dali=False)
