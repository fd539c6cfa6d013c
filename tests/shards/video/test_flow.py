"""Optical flow as stored: what is decoded from the bytes is what OpenCV gives for the stored video's frames."""

import io
import itertools
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from independent import render

from shards import InputError
from shards.video.encode import CRF, Encoding
from shards.video.flow import Flow, flow_video, read_flow
from shards.video.transcode import transcode

cv2 = pytest.importorskip("cv2", reason="needs the extra `flow` (opencv-contrib-python-headless)")
FRAMES = 7


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth texture that moves 2.5 pixels to the right and 1 down a frame, 25 frames/s."""
    path = tmp_path_factory.mktemp("moving") / "moving.mkv"
    y, x = np.mgrid[:96, :128].astype(np.float64)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for n in range(FRAMES):
            u, v = x - 2.5 * n, y - n
            grey = 120 + 50 * np.sin(u / 5) * np.cos(v / 7) + 40 * np.sin((u + 2 * v) / 11)
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def direct(video: bytes, algorithm: str) -> np.ndarray:
    """OpenCV on the RGB that FFmpeg makes of the video, as a researcher would call it: (T − 1, H, W, 2)."""
    with av.open(io.BytesIO(video)) as container:
        greys = [frame.to_ndarray(format="rgb24")[..., 0] for frame in container.decode(video=0)]
    engine = cv2.optflow.DualTVL1OpticalFlow_create if algorithm == "tvl1" else cv2.DISOpticalFlow_create
    arguments = [] if algorithm == "tvl1" else [cv2.DISOPTICAL_FLOW_PRESET_MEDIUM]
    return np.stack([engine(*arguments).calc(one, other, None) for one, other in itertools.pairwise(greys)])


def flow_bytes(video: bytes, flow: Flow, encoding: Encoding) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        path.write_bytes(video)
        return flow_video(path, flow, encoding, Path(folder, "flow.mp4")).read_bytes()


def stored_levels(data: bytes) -> np.ndarray:
    """(T, 2H, W) as any decoder shows them."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24")[..., 0] for f in container.decode(video=0)]) * 1.0


@pytest.mark.parametrize("limit", [20.0, 10.0])
@pytest.mark.parametrize("algorithm", ["tvl1", "dis"])
def test_decoded_flow_is_the_direct_flow_within_half_a_step(
    moving: Path, algorithm: str, limit: float
) -> None:
    encoding = Encoding(gop=4)
    video = transcode(moving, encoding).data
    data = flow_bytes(video, Flow(algorithm, limit), encoding)
    wanted = direct(video, algorithm)
    wanted = np.clip(np.concatenate([wanted, wanted[-1:]]), -limit, limit)
    got = read_flow(data, limit)
    assert got.shape == (FRAMES, 96, 128, 2) and got.dtype == np.float32
    step = 2 * limit / 255
    assert np.abs(got - wanted).mean() <= step / 2
    shown = stored_levels(data)
    expected = 127.5 + 127.5 * np.concatenate([wanted[..., 0], wanted[..., 1]], axis=1) / limit
    assert shown.shape == (FRAMES, 192, 128) and np.abs(shown - expected).mean() <= 0.5
    middle = np.median(got[:, 20:-20, 20:-20], (0, 1, 2))  # and it is the motion that was rendered
    np.testing.assert_allclose(middle, [2.5, 1], atol=0.25)


@pytest.mark.parametrize("codec", sorted(CRF))
def test_every_codec_keeps_half_a_step_the_frames_and_the_rate(moving: Path, codec: str) -> None:
    encoding = Encoding(codec=codec, gop=4)
    video = transcode(moving, encoding).data
    data = flow_bytes(video, Flow("dis", 10), encoding)
    wanted = direct(video, "dis")
    error = np.abs(read_flow(data, 10) - np.concatenate([wanted, wanted[-1:]])).mean()
    assert error <= 20 / 255 / 2
    with av.open(io.BytesIO(data)) as flow, av.open(io.BytesIO(video)) as stored:
        ours, theirs = flow.streams.video[0], stored.streams.video[0]
        assert (ours.codec_context.name, ours.average_rate) == (
            theirs.codec_context.name,
            theirs.average_rate,
        )
        keys = [n for n, frame in enumerate(flow.decode(ours)) if frame.key_frame]
        assert keys == [n for n, frame in enumerate(stored.decode(theirs)) if frame.key_frame]


def test_flow_beyond_the_limit_is_clipped_and_the_last_is_repeated(moving: Path) -> None:
    encoding = Encoding()
    video = transcode(moving, encoding).data
    got = read_flow(flow_bytes(video, Flow("dis", 1.5), encoding), 1.5)
    assert np.abs(got).max() <= 1.5
    np.testing.assert_allclose(np.median(got[..., 0]), 1.5, atol=0.02)
    np.testing.assert_allclose(got[-1], got[-2], atol=3 * 3 / 255)


def test_the_same_video_gives_the_same_bytes_and_one_frame_does_not_move(
    moving: Path, tmp_path: Path
) -> None:
    encoding, flow = Encoding(), Flow("dis")
    video = transcode(moving, encoding).data
    assert flow_bytes(video, flow, encoding) == flow_bytes(video, flow, encoding)
    single = transcode(render(tmp_path / "one.avi", frames=1), encoding).data
    still = read_flow(flow_bytes(single, flow, encoding), flow.limit)
    assert still.shape == (1, 64, 96, 2) and np.abs(still).max() <= 20 / 255


def test_small_videos_have_flow_too(tmp_path: Path) -> None:
    encoding = Encoding(short_side=16)
    for size in ((16, 16), (64, 16), (16, 64)):
        video = transcode(render(tmp_path / "in.avi", frames=3, size=size), encoding).data
        for algorithm in ("tvl1", "dis"):
            assert read_flow(flow_bytes(video, Flow(algorithm), encoding), 20).shape == (3, *size[::-1], 2)


def test_what_is_missing_or_senseless_names_its_flag_and_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--flow farneback: not one of tvl1, dis"):
        Flow("farneback")
    with pytest.raises(InputError, match=r"--flow-limit 0: give"):
        Flow("dis", 0)
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(InputError, match=r"--flow tvl1: .* lacks the contrib modules; .*--flow dis"):
        Flow("tvl1").estimator()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"--flow dis: OpenCV is not installed; pip install"):
        Flow("dis").estimator()
