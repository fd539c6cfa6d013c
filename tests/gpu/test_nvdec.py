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
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards import Dataset, InputError, demo
from shards.video.encode import Encoding
from shards.video.mp4 import read_index
from shards.video.transcode import transcode
from tests.pipelines.reference import loader, write_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
FRAMES = 150
Decode = Callable[[bytes, np.ndarray, Any], Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """With B-frames."""
    folder = tmp_path_factory.mktemp("demo")
    rendered = Dataset(demo.render(folder, clips_per_class=(1, 1), frames=FRAMES, workers=2)).read(0)
    return transcode(rendered, Encoding(short_side=144, preset="ultrafast", b_frames=2)).data


@pytest.fixture
def nvdec() -> Decode:
    try:
        choose_backend("gpu")
    except InputError as error:
        pytest.skip(str(error))
    from pipelines.backends.gpu import Nvdec

    return Nvdec(torch.cuda.current_device())


def assert_same(decode: Decode, video: bytes, numbers: list[int]) -> None:
    """Of the file that the loader trims, and of the whole one."""
    from pipelines.backends.gpu import StreamKind

    index, wanted = read_index(video), np.array(numbers, np.int32)
    expected = Frames.of(Decoded.of(video, numbers), torch.device("cpu"))
    kind = StreamKind(index.width, index.height, index.extradata)
    for file, shown in ((video, wanted), trim(index, video, wanted)):
        luma, chroma = decode(file, shown, kind)
        assert torch.equal(luma.cpu(), expected.luma) and torch.equal(chroma.cpu(), expected.chroma)


def test_more_frames_than_are_given_at_a_time(nvdec: Decode, source: bytes, monkeypatch: Any) -> None:
    for numbers in (list(range(FRAMES)), [0, FRAMES - 1], list(range(3, FRAMES, 7)), [5, 6, 60, 61, 140]):
        assert_same(nvdec, source, numbers)
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.backends.gpu._BYTES_AT_ONCE", 1)
            assert_same(nvdec, source, numbers)


def test_a_single_key_frame_in_turns_with_others(nvdec: Decode, source: bytes) -> None:
    """Of a file of one frame the library has a thread that opens it again."""
    for _ in range(40):
        assert_same(nvdec, source, [0])
        assert_same(nvdec, source, [3, 7, 12])


def test_kinds_of_stream_in_turns(nvdec: Decode, source: bytes, monkeypatch: Any) -> None:
    """More than a thread keeps decoders; of several sizes, some no multiples of 16; of one size with other references."""
    monkeypatch.setattr("pipelines.backends.gpu._DECODERS", 3)
    sides = [(98, 1), (96, 16), (144, 1), (100, 1), (112, 16), (128, 16)]
    encodings = [Encoding(short_side=side, multiple=multiple, preset="ultrafast") for side, multiple in sides]
    encodings += [Encoding(short_side=144, preset=preset) for preset in ("ultrafast", "veryslow")]
    videos = [transcode(source, encoding).data for encoding in encodings]
    for video in itertools.chain(videos, reversed(videos), videos[:3], videos):
        assert_same(nvdec, video, [0, 5, 40])


def test_memory_that_the_model_still_reads_is_not_written(nvdec: Decode, source: bytes) -> None:
    """A tensor of the default stream is let go of while a kernel that reads it is still to come."""
    index = read_index(source)
    from pipelines.backends.gpu import StreamKind

    kind, numbers = StreamKind(index.width, index.height, index.extradata), np.arange(40, dtype=np.int32)
    nvdec(source, numbers, kind)
    size = len(numbers) * index.width * index.height
    for _ in range(5):
        used = torch.full((size,), 7, dtype=torch.uint8, device="cuda")
        torch.cuda._sleep(200_000_000)  # cycles: some 100 ms
        total = used.sum(dtype=torch.int64)
        del used
        nvdec(source, numbers, kind)
        assert int(total) == 7 * size


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
        assert made.backend._nvdec  # type: ignore[attr-defined]
        for batch in itertools.islice(made, 8):
            assert batch["views"].isfinite().all() and len(batch["key"]) == 2
