"""On a GPU: NVDEC's frames are FFmpeg's, whatever the sizes and the number of frames; and what it does with damage."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.backends import choose_backend
from pipelines.backends.cpu import Decoded, Frames
from pipelines.views import ViewSpec
from shards import Dataset, InputError, demo
from shards.video.encode import Encoding
from shards.video.mp4 import read_index
from shards.video.transcode import transcode
from tests.pipelines.reference import loader, write_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
FRAMES = 150
Decode = Callable[[bytes, np.ndarray, tuple[int, int]], Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("demo")
    return Dataset(demo.render(folder, clips_per_class=(1, 1), frames=FRAMES, workers=2)).read(0)


@pytest.fixture
def nvdec() -> Decode:
    try:
        choose_backend("gpu")
    except InputError as error:
        pytest.skip(str(error))
    from pipelines.backends.gpu import Nvdec

    return Nvdec(torch.cuda.current_device())


def assert_same(decode: Decode, video: bytes, numbers: list[int]) -> None:
    index = read_index(video)
    luma, chroma = decode(video, np.array(numbers, np.int32), (index.width, index.height))
    expected = Frames.of(Decoded.of(video, numbers), torch.device("cpu"))
    assert torch.equal(luma.cpu(), expected.luma) and torch.equal(chroma.cpu(), expected.chroma)


def test_more_frames_than_are_given_at_a_time(nvdec: Decode, source: bytes, monkeypatch: Any) -> None:
    for numbers in (list(range(FRAMES)), [0, FRAMES - 1], list(range(3, FRAMES, 7))):
        assert_same(nvdec, source, numbers)
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.backends.gpu._BYTES_AT_ONCE", 1)
            assert_same(nvdec, source, numbers)


def test_sizes_in_turns(nvdec: Decode, source: bytes) -> None:
    """More of them than a thread keeps decoders; some are no multiples of 16, of one coded size."""
    sides = [(98, 1), (96, 16), (144, 1), (100, 1), (112, 16), (128, 16)]
    videos = [
        transcode(source, Encoding(short_side=side, multiple=multiple, preset="ultrafast")).data
        for side, multiple in sides
    ]
    for video in itertools.chain(videos, reversed(videos), videos[:3], videos):
        assert_same(nvdec, video, [0, 5, 40])


@pytest.mark.parametrize("where", [0.3, 0.97])
def test_damage_ends_in_another_video(source: bytes, tmp_path: Path, nvdec: Decode, where: float) -> None:
    """Whatever NVDEC makes of it, the process lives, and every batch comes."""
    clip = transcode(source, Encoding(short_side=96, preset="ultrafast"))
    facts = {"num_frames": clip.num_frames, "fps": clip.fps, "width": clip.width, "height": clip.height}
    damaged = bytearray(clip.data)
    place = int(len(damaged) * where)
    damaged[place:] = bytes(len(damaged) - place)
    videos = [clip.data, bytes(damaged), clip.data, clip.data, clip.data]
    dataset = Dataset(write_dataset(tmp_path / "d", videos, [facts] * 5))
    spec = ViewSpec(offsets=(tuple(range(100)),), size=64)
    with loader(dataset, spec, backend="gpu", batch_size=2, on_cpu_dali=False) as made:
        for batch in itertools.islice(made, 8):
            assert batch["views"].isfinite().all() and len(batch["key"]) == 2
