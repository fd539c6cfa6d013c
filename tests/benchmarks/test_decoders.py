"""The decode ceiling decodes what is needed, run-up included, and no more; and the count is of packets handed over.

The SPDL peer sees what our decode-and-crop sees: the same frames and boxes, and pixels within 3 of 255 levels.
"""

from typing import Any

import numpy as np
import pytest

import objectives
from benchmarks.loader.decoders import (
    check_spdl,
    crops,
    decode,
    decoded_per_used,
    demuxed,
    libavcodec,
    spdl,
    stretches,
)
from benchmarks.loader.parts import pixels
from benchmarks.loader.rounds import Source
from pipelines.trim import trim
from shards import Dataset, InputError
from shards.video.mp4 import read_index
from tests.pipelines.reference import numbered_video

GOP = 16


@pytest.fixture(scope="module", params=[0, 2])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, bytes]:
    """With how many B-frames, and the video: with two, frames 0, 3, 6, 9, 12, 15 of each 16 are referred to."""
    path = tmp_path_factory.mktemp("numbered") / "video.mp4"
    return request.param, numbered_video(path, 100, gop=GOP, b_frames=request.param)


@pytest.mark.parametrize(
    ("numbers", "decoded"),
    [
        ([0], {0: 1, 2: 1}),
        ([20], {0: 5, 2: 4}),  # from the key frame 16; 19, 22, 20
        ([9, 15], {0: 16, 2: 6}),
        ([15, 16], {0: 16 + 1, 2: 6 + 1}),
        ([13, 16], {0: 14 + 1, 2: 7 + 1}),  # 12, 15, 13: nothing is saved by seeking to 16
        ([3, 19], {0: 4 + 4, 2: 2 + 2}),
        ([3, 20], {0: 4 + 5, 2: 2 + 4}),
        ([0, 40, 99], {0: 1 + 9 + 4, 2: 1 + 5 + 2}),  # key frames 0, 32 and 96; 35, 38, 41, 40; 99
        (list(range(100)), {0: 100, 2: 100}),
    ],
)
def test_frames_decoded(video: tuple[int, bytes], numbers: list[int], decoded: dict[int, int]) -> None:
    b_frames, data = video
    assert decode(demuxed(data, np.array(numbers))) == decoded[b_frames]


def test_frames_decoded_per_frame_used(rendered: Dataset) -> None:
    cls = objectives.get("dpc")
    source = Source(rendered, rendered.select(), cls.view_spec(cls.Config()), 2, seed=0)
    assert libavcodec(source, 2, 1)(0)["clips_per_s"] > 0
    used = handed = in_files = 0
    for batch in source.batches(0, 3):
        for one in batch:
            numbers = sorted(set(one.params.frames.ravel().tolist()))
            video = source.read(one.row)
            used, handed = used + len(numbers), handed + decode(demuxed(video, np.array(numbers)))
            file, _ = trim(read_index(video), video, one.params.frames.ravel())
            in_files += read_index(file).num_frames
    assert decoded_per_used(source, 3, as_file=False) == pytest.approx(handed / used)
    assert decoded_per_used(source, 3, as_file=True) == pytest.approx(in_files / used)
    assert 1 < handed / used < 3  # every third frame is used, and two thirds of the others are left out


try:
    check_spdl()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

LIMIT = 3  # levels of 255: its conversion to RGB rounds down
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in objectives.available()),
    ("memdpc", {"modality": "flow"}),
    ("tcp", {"modality": "difference"}),
]


@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "window"])
@pytest.mark.parametrize(
    ("name", "changes"), CASES, ids=lambda case: case if isinstance(case, str) else "-".join(case)
)
def test_it_shows_what_ours_shows(rendered: Dataset, name: str, changes: dict[str, Any], tuned: bool) -> None:
    cls = objectives.get(name)
    source = Source(rendered, rendered.select(), cls.view_spec(cls.Config(**changes)), 2, seed=3)
    # the flow that the tests make has 25 frames/s
    fps = 25.0 if source.spec.modality == "flow" else float(rendered.column("fps")[0])
    for one in source.samples(0, 2):
        ours = pixels(source, one).astype(float)
        theirs = crops(
            source.read_unchecked(one.row), one.params, source.spec.size, fps, 16, source.spec.modality, tuned
        )
        assert theirs.shape == ours.shape
        off = np.abs(ours - theirs).mean((1, 2))  # of each frame and channel: none shows another frame or box
        assert off.max() < LIMIT
        if source.spec.modality == "rgb":
            assert np.abs(ours[::-1] - theirs).mean() > 2 * off.max() or len(set(one.params.frames.flat)) == 1


def test_it_is_timed(rendered: Dataset) -> None:
    cls = objectives.get("dpc")
    source = Source(rendered, rendered.select(), cls.view_spec(cls.small()), 2, seed=0)
    assert spdl(source, 2, 1)(0)["clips_per_s"] > 0


def test_far_frames_are_demuxed_apart() -> None:
    far = stretches(np.array([0, 3, 6, 40, 41, 99]), 16)
    assert [part.tolist() for part in far] == [[0, 3, 6], [40, 41], [99]]
    assert [part.tolist() for part in stretches(np.array([7]), 16)] == [[7]]
