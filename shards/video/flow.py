"""Optical flow of a stored video, itself stored as a video: u above v in the luma plane, 8 bits."""

import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast, get_args

import av
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from shards.errors import InputError
from shards.video.encode import Codec, Encoding, write_mp4

Algorithm = Literal["tvl1", "dis"]
Frame = NDArray[np.uint8]
INSTALL = "pip install opencv-contrib-python-headless"

# Near-lossless: the mean error of what is decoded stays below half of a step of 8 bits
# (tests/shards/video/test_flow.py).
CRF = {"h264": 8, "hevc": 8, "vp9": 6, "mjpeg": 2}


@dataclass(frozen=True)
class Flow:
    """How flow is computed and stored.

    algorithm: tvl1 (Zach et al. 2007; opencv-contrib's DualTVL1, its defaults) or dis (Kroeger et al. 2016; its
    medium preset), many times faster and less precise. limit: pixels a frame at which u and v are clipped;
    MemDPC clips at 20, TCP at 10.
    """

    algorithm: Algorithm = "tvl1"
    limit: float = 20.0

    def __post_init__(self) -> None:
        if self.algorithm not in get_args(Algorithm):
            raise InputError(f"--flow {self.algorithm}: not one of {', '.join(get_args(Algorithm))}")
        if not 0.5 <= self.limit <= 1000:
            raise InputError(f"--flow-limit {self.limit:g}: give 0.5 to 1000 pixels a frame")

    def estimator(self) -> Callable[[Frame, Frame], NDArray[np.float32]]:
        """A function of two consecutive grey frames (H, W), uint8, to (u, v) in pixels, (H, W, 2) float32.

        Single-threaded, and the same for the same frames. Raises InputError where OpenCV is not installed.
        """
        try:
            cv2: Any = importlib.import_module("cv2")
        except ImportError:
            raise InputError(f"--flow {self.algorithm}: OpenCV is not installed; {INSTALL}") from None
        if self.algorithm == "tvl1" and not hasattr(cv2, "optflow"):
            found = f"this OpenCV ({cv2.__version__}) lacks the contrib modules"
            raise InputError(f"--flow tvl1: {found}; {INSTALL}, or choose --flow dis")
        cv2.setNumThreads(1)
        cv2.ocl.setUseOpenCL(False)

        def estimate(before: Frame, after: Frame) -> NDArray[np.float32]:
            # a new engine for each pair: it may carry what it knows of the last one over
            if self.algorithm == "tvl1":
                engine = cv2.optflow.DualTVL1OpticalFlow_create()
            else:
                engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            return cast(NDArray[np.float32], engine.calc(before, after, None))

        return estimate


def flow_video(video: Path, flow: Flow, encoding: Encoding, into: Path) -> Path:
    """Write the flow of a stored video to `into`: an mp4 with as many frames, its rate and width, and twice its height.

    Frame t is the flow from frame t to t + 1; the last one is repeated; a single frame does not move. The grey
    level (0–255, full range and tagged so) is 127.5 + 127.5 · flow / limit. encoding: that of `video`, whose codec
    and GOP the flow keeps. Decoded levels are off by less than half a level on average. Raises InputError where OpenCV
    is not installed.
    """
    with av.open(str(video), "r") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        frames = (_grey(frame) for frame in container.decode(stream))
        pictures = (_picture(levels(uv, flow.limit), encoding.codec) for uv in flow_of(frames, flow))
        lossless = replace(encoding, crf=CRF[encoding.codec])
        if not write_mp4(pictures, into, Fraction(stream.average_rate or 25), lossless).num_frames:
            into.touch()
    return into


def flow_of(frames: Iterator[Frame], flow: Flow) -> Iterator[NDArray[np.float32]]:
    """Flow in pixels, (H, W, 2) float32, one for each of the grey frames (H, W)."""
    estimate = flow.estimator()
    uv, before = None, None
    for frame in frames:
        if before is not None:
            uv = estimate(before, frame)
            yield uv
        before = frame
    if before is not None:
        yield np.zeros((*before.shape, 2), np.float32) if uv is None else uv


def levels(uv: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    """Flow (H, W, 2) in pixels → (2H, W) in 0–255: u above v, clipped at ±limit, no motion at 127.5."""
    stacked = np.concatenate([uv[..., 0], uv[..., 1]])
    return np.clip(127.5 + 127.5 / limit * stacked, 0, 255)


def read_flow(video: bytes, limit: float) -> NDArray[np.float32]:
    """What `flow_video` made, as pixels a frame: (T, H, W, 2) float32."""
    with av.open(io.BytesIO(video), "r") as container:
        frames = [_grey(frame) for frame in container.decode(video=0)]
    uv = np.stack(frames).astype(np.float32).reshape(len(frames), 2, -1, frames[0].shape[1])
    return np.moveaxis((uv - 127.5) * (limit / 127.5), 1, -1)


def _grey(frame: av.VideoFrame) -> Frame:
    """Luma (H, W) spread over 0–255."""
    luma = cast(Frame, frame.to_ndarray()[: frame.height])
    return luma if frame.color_range == ColorRange.JPEG else _FULL_FROM_LIMITED[luma]


_FULL_FROM_LIMITED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def _picture(grey: NDArray[np.float32], codec: Codec) -> av.VideoFrame:
    """Grey levels 0–255 as a full-range frame: limited range has 219 levels, and would round half of them."""
    height, width = grey.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.round(grey)
    picture = av.VideoFrame.from_ndarray(planes, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    picture.color_range = ColorRange.JPEG
    return picture
