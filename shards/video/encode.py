"""Frames in, one house-style mp4 out: closed GOPs, B-frames nobody refers to, constant rate, BT.601, one thread."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from shards.errors import require

Codec = Literal["h264", "hevc", "vp9", "mjpeg"]

# Default quality per codec: the usual figure for web video; for MJPEG it is the quantiser.
CRF = {"h264": 23, "hevc": 25, "vp9": 32, "mjpeg": 4}
CRF_RANGE = {"h264": (0, 51), "hevc": (0, 51), "vp9": (0, 63), "mjpeg": (2, 31)}
Tune = Literal["fastdecode", "none"]
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
# bitexact leaves the library's version out of the container; faststart puts the index before the data,
# so that a decoder of in-memory bytes finds it first
CONTAINER = {"movflags": "+faststart", "fflags": "+bitexact"}
SMPTE170M = 6  # AVCOL_SPC_SMPTE170M, the matrix of BT.601; PyAV has no name for it on the codec's side


@dataclass(frozen=True)
class Encoding:
    """How every video of a data set is encoded. The figures that are None follow from the codec."""

    codec: Codec = "h264"
    """h264 and hevc decode on every NVDEC, vp9 on most, mjpeg on none."""
    short_side: int = 256
    """Pixels; larger videos are scaled down to it, smaller ones are not scaled up."""
    fps: float | None = None
    """Frames per second, resampled by time; every frame at the video's own average rate when not given."""
    gop: int = 16
    """Frames from one key frame to the next: random access decodes half of it for nothing, on average."""
    crf: int | None = None
    """Quality, lower is better and larger; when not given h264 23, hevc 25, vp9 32, mjpeg 4 (quantiser)."""
    preset: str = "medium"
    """Speed against size of h264 and hevc: ultrafast, superfast, veryfast, faster, fast, medium, slow, …"""
    tune: Tune = "fastdecode"
    """fastdecode: h264 and hevc without what is slow to decode: CABAC, the deblocking filter. h264 decodes twice as
    fast on a CPU, for an eighth more bytes and 0.3 dB. none keeps them."""
    b_frames: int | None = None
    """Frames in a row, of h264, that no other frame refers to: of these a CPU decodes only what a clip shows. GOPs that
    they fit are multiples of B_FRAMES + 1, plus 1. When not given 2; 0: every frame refers to the one before it."""
    multiple: int = 16
    """Width and height become multiples of this many pixels: the short side is scaled down to one, then the long side
    is cropped at its centre, by fewer than MULTIPLE pixels. DALI's readers open an NVDEC decoder for each video with a side
    that is no multiple of 16. 1: keep the whole picture, with even sides. Videos that --copy keeps have their own size."""

    def __post_init__(self) -> None:
        require(self, ("codec", self.codec in CRF, f"not one of {', '.join(CRF)}"))
        multiple, (low, high) = self.multiple, CRF_RANGE[self.codec]
        even = multiple == 1 or (multiple % 2 == 0 and 2 <= multiple <= 64)
        larger = f"is less than --multiple {multiple}; give a larger side or --multiple 1"
        rate = "give frames per second between 0.1 and 1000, or leave it out"
        b_frames = not self.b_frames or self.codec == "h264"
        require(
            self,
            ("short_side", self.short_side >= 16, "no decoder takes less than 16 pixels"),
            ("multiple", even, "give an even number from 2 to 64, or 1 for none"),
            ("short_side", self.short_side >= multiple, larger),
            ("fps", self.fps is None or 0.1 <= self.fps <= 1000, rate),
            ("gop", 1 <= self.gop <= 1000, "give 1 to 1000 frames"),
            ("crf", low <= self.quality <= high, f"{self.codec} takes {low} to {high}"),
            ("preset", self.preset in PRESETS, f"not one of {', '.join(PRESETS)}"),
            ("tune", self.tune in get_args(Tune), f"not one of {', '.join(get_args(Tune))}"),
            ("b_frames", 0 <= self.b_frames_in_a_row <= 15, "give 0 to 15 in a row"),
            ("b_frames", b_frames, f"of h264 only; leave it out with --codec {self.codec}"),
        )

    @property
    def quality(self) -> int:
        """The codec's quality figure in force."""
        return CRF[self.codec] if self.crf is None else self.crf

    @property
    def b_frames_in_a_row(self) -> int:
        """B-frames between two frames that others refer to."""
        return (2 if self.codec == "h264" else 0) if self.b_frames is None else self.b_frames

    def settings(self) -> dict[str, Any]:
        """As dataset.json tells them, with the figures in force."""
        return asdict(self) | {"crf": self.quality, "b_frames": self.b_frames_in_a_row}

    @property
    def key_every(self) -> int:
        """Frames from one key frame to the next in the file."""
        return 1 if self.codec == "mjpeg" else self.gop


@dataclass(frozen=True)
class Written:
    """What `write_mp4` put into the file."""

    num_frames: int
    width: int
    height: int


def house_frame(
    frame: av.VideoFrame, width: int, height: int, codec: Codec, reformatter: VideoReformatter
) -> av.VideoFrame:
    """One frame of any format as 4:2:0, 8 bit, BT.601 matrix: limited range, or full range for MJPEG.

    DALI's readers convert every video with the BT.601 matrix, whatever its tag says
    (https://github.com/NVIDIA/DALI/issues/4441), hence one matrix for all. Untagged YUV is read as BT.709
    when it is larger than standard definition, else as BT.601, as players do.
    """
    source_matrix = None
    if frame.colorspace == 2 and not frame.format.is_rgb:
        hd = frame.width >= 1280 or frame.height > 576
        source_matrix = Colorspace.ITU709 if hd else Colorspace.ITU601
    full = codec == "mjpeg"
    return reformatter.reformat(
        frame,
        width,
        height,
        "yuvj420p" if full else "yuv420p",
        src_colorspace=source_matrix,
        dst_colorspace=Colorspace.ITU601,
        interpolation="BICUBIC",
        dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        threads=1,
    )


def write_mp4(frames: Iterable[av.VideoFrame], path: Path, rate: Fraction, encoding: Encoding) -> Written:
    """Encode house frames (or full-range ones, tagged so), renumbered 0, 1, 2, … at `rate`, into the mp4 `path`.

    Frame n has time n / rate exactly. The same frames give the same bytes, whatever the machine's cores.
    Raises av.FFmpegError when the encoder refuses; zero frames write nothing.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return Written(0, 0, 0)
    with av.open(str(path), "w", format="mp4", options=CONTAINER) as container:
        stream = _add_stream(container, first, rate, encoding)
        count = 0
        for frame in _renumbered(itertools.chain([first], frames), rate, encoding.key_every):
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return Written(count, first.width, first.height)


def _renumbered(frames: Iterator[av.VideoFrame], rate: Fraction, key_every: int) -> Iterator[av.VideoFrame]:
    for n, frame in enumerate(frames):
        frame.pts, frame.time_base = n, 1 / rate
        frame.dts = None
        # a decoded frame carries its old picture type, which an encoder would take for an order
        frame.pict_type = PictureType.I if n % key_every == 0 else PictureType.NONE
        yield frame


def _add_stream(
    container: av.container.OutputContainer, like: av.VideoFrame, rate: Fraction, encoding: Encoding
) -> av.VideoStream:
    library, options = _codec_options(encoding)
    stream = container.add_stream(library, rate=rate, options=options)
    assert isinstance(stream, av.VideoStream)
    context = stream.codec_context
    context.width, context.height = like.width, like.height
    context.pix_fmt = "yuvj420p" if encoding.codec == "mjpeg" else "yuv420p"
    context.time_base = 1 / rate
    context.gop_size = encoding.key_every
    context.max_b_frames = encoding.b_frames_in_a_row
    context.thread_count = 1
    context.bit_rate = 0
    full = encoding.codec == "mjpeg" or like.color_range == ColorRange.JPEG
    context.color_range = ColorRange.JPEG if full else ColorRange.MPEG
    context.colorspace = SMPTE170M
    context.color_primaries = ColorPrimaries.SMPTE170M
    context.color_trc = ColorTrc.SMPTE170M
    if encoding.codec == "hevc":
        context.codec_tag = "hvc1"
    return stream


def _codec_options(encoding: Encoding) -> tuple[str, dict[str, str]]:
    """FFmpeg's encoder name and its options: fixed GOP, no scene cuts, one thread."""
    quality, gop = str(encoding.quality), encoding.gop
    tune = {} if encoding.tune == "none" else {"tune": encoding.tune}
    if encoding.codec == "h264":
        options = {"preset": encoding.preset, "crf": quality, "sc_threshold": "0", "keyint_min": str(gop)}
        # captions of the source stay out of the picture stream
        options |= {"forced-idr": "1", "flags": "+cgop", "a53cc": "0"}
        # without it x264 chooses by the processor, and its rate control was seen to depend on what happens
        # to be in memory: other bytes from one run to the next (MALLOC_PERTURB_ shows it)
        return "libx264", options | tune | {"x264-params": "cpu-independent=1:b-adapt=0:b-pyramid=none"}
    if encoding.codec == "hevc":
        # the search for prediction weights was seen to depend on what happens to be in memory
        settings = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:weightp=0"
        threads = "pools=none:frame-threads=1:wpp=0:log-level=none"
        return "libx265", tune | {
            "preset": encoding.preset,
            "crf": quality,
            "forced-idr": "1",
            "x265-params": f"{settings}:{threads}",
        }
    if encoding.codec == "vp9":
        # alternate reference frames are hidden frames, and need a look-ahead: neither suits frame numbers
        return "libvpx-vp9", {
            "crf": quality,
            "b": "0",
            "keyint_min": str(gop),
            "auto-alt-ref": "0",
            "lag-in-frames": "0",
            "deadline": "good",
            "cpu-used": "4",
            "row-mt": "0",
        }
    return "mjpeg", {"qmin": quality, "qmax": quality}
