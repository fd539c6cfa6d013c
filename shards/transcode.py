"""Any video in, one house-style clip out: the whole stream is decoded and its frames are counted."""

import errno
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from shards.encode import Codec, Encoding, house_frame, write_mp4

__all__ = ["REASONS", "Clip", "Encoding", "Rejected", "quiet", "transcode"]

WHOLE_ENOUGH = 0.9  # healthy HMDB51 clips decode 83 of 84 frames; half a file is not a sample
MOST_COPIES = 100  # output frames a decoded frame; more means broken time stamps, not slow motion

REASONS = {
    "unreadable": "the file cannot be opened, or no container format is recognised in it",
    "no_video": "there is no video stream (audio, subtitles or cover art only)",
    "no_decoder": "the video's codec is not known to FFmpeg",
    "no_frames": "the video stream is there, but no frame decodes",
    "damaged": f"less than {WHOLE_ENOUGH:.0%} of what the container announces decodes",
    "bad_times": "the time stamps are so far apart that resampling would repeat frames without end",
    "not_encodable": "the encoder refuses the frames (as a rule their size)",
    "crashed": "the decoder or encoder died of it, or the system killed it for its memory",
    "unexpected": "an error that this list does not foresee; the detail names it",
}


class Rejected(Exception):
    """A video that does not become a sample: `reason` is a key of REASONS, `detail` what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Clip:
    """One encoded video: `data` is an mp4; frame n has time n / fps. `seen` describes the source."""

    data: bytes = field(repr=False)
    num_frames: int
    fps: float
    width: int
    height: int
    seen: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Tally:
    """What decoding met. Times are seconds of the stream's clock."""

    frames: int = 0
    first: float | None = None
    end: float | None = None
    error: str = ""


def quiet() -> None:
    """Keep FFmpeg's remarks about damaged files off standard error: they are counted here instead."""
    av.logging.set_level(None)
    logging.getLogger("libav").setLevel(logging.CRITICAL)


def transcode(source: Path | bytes, encoding: Encoding, scratch: Path | None = None) -> Clip:
    """Decode a whole video, a file or its bytes, and encode it as `encoding` says.

    scratch: folder for the temporary mp4. Of several video streams the largest picture is taken; rotation
    tags are applied. Raises Rejected.
    """
    quiet()
    try:
        handle = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    except OSError as error:
        raise Rejected("unreadable", str(error.strerror)) from error
    with handle:
        try:
            # a playlist that calls itself .mp4 must not make us open what it names
            options = {"protocol_whitelist": "none"}
            container = av.open(handle, "r", metadata_errors="ignore", options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise Rejected("unreadable", _message(error)) from error
        with container, tempfile.TemporaryDirectory(dir=scratch, prefix="encode-") as folder:
            return _transcode_stream(
                container, _largest_video(container), encoding, Path(folder) / "clip.mp4"
            )


def _transcode_stream(
    container: av.container.InputContainer, stream: av.VideoStream, encoding: Encoding, path: Path
) -> Clip:
    stream.codec_context.thread_count = 1
    own_rate = _plausible(stream.average_rate) or _plausible(stream.guessed_rate) or Fraction(25)
    rate = own_rate if encoding.fps is None else Fraction(encoding.fps).limit_denominator(1001)
    tally = _Tally()
    frames = _upright(_decoded(container, stream, own_rate, tally), encoding)
    if encoding.fps is not None:
        frames = _resampled(frames, rate, tally)
    try:
        written = write_mp4(frames, path, rate, encoding)
    except av.FFmpegError as error:
        if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise  # a full disk is not the video's fault
        size = f"{stream.width}x{stream.height}"
        raise Rejected("not_encodable", f"{encoding.codec} of {size}: {_message(error)}") from error
    announced, fraction = _decoded_fraction(stream, tally)
    if (fraction is None and tally.error) or (fraction is not None and fraction < WHOLE_ENOUGH):
        then = f", then: {tally.error}" if tally.error else ""
        raise Rejected("damaged", f"{tally.frames} frames decode of {announced}{then}")
    if written.num_frames == 0:
        raise Rejected("no_frames", f"{stream.codec_context.name}: the stream ends without a frame")
    seen = {
        "source_codec": stream.codec_context.name,
        "source_width": stream.width,
        "source_height": stream.height,
        "source_fps": float(own_rate),
        "source_frames": tally.frames,
        "decoded_fraction": fraction,
    }
    return Clip(path.read_bytes(), written.num_frames, float(rate), written.width, written.height, seen)


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The even size, in pixels, with the short side at most `short_side`: aspect kept, never scaled up."""
    scale = min(1.0, (short_side // 2 * 2) / min(width, height))
    even = [max(2, min(round(side * scale / 2) * 2, side // 2 * 2)) for side in (width, height)]
    return even[0], even[1]


def _plausible(rate: Fraction | None) -> Fraction | None:
    # an mp4's time scale is the rate's numerator, 32 bits at most
    return rate.limit_denominator(100_000) if rate and 0.01 <= rate <= 1000 else None


def _message(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0]


def _largest_video(container: av.container.InputContainer) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise Rejected("no_video", f"the file holds {kinds} only")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise Rejected("no_decoder", "the codec of the video stream is unknown to FFmpeg")
    return max(known, key=lambda stream: stream.width * stream.height)


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, rate: Fraction, tally: _Tally
) -> Iterator[av.VideoFrame]:
    """Every frame, up to the end or the first error, which is noted in `tally`; every frame has a time."""
    try:
        for frame in container.decode(stream):
            clock = frame.time_base or stream.time_base or 1 / rate
            if frame.pts is None:
                frame.time_base = clock
                frame.pts = round((0.0 if tally.end is None else tally.end) / clock)
            start = float(frame.pts * clock)
            tally.first = start if tally.first is None else min(start, tally.first)
            tally.end = max(start + float(1 / rate), tally.end or start)
            tally.frames += 1
            yield frame
    except (av.FFmpegError, OSError) as error:
        tally.error = _message(error)


def _decoded_fraction(stream: av.VideoStream, tally: _Tally) -> tuple[str, float | None]:
    """What the container announces, in words, and how much of it came; None when it announces nothing."""
    if stream.frames > 0:
        return f"{stream.frames} announced", tally.frames / stream.frames
    # Matroska counts no frames, but its muxers note the time at which each track ends
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        end = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return "an unannounced number", None
    first = tally.first or 0.0
    if end <= first:
        return "an unannounced number", None
    covered = (tally.end or first) - first
    return f"{end - first:.2f} s announced ({covered:.2f} s came)", covered / (end - first)


def _upright(frames: Iterator[av.VideoFrame], encoding: Encoding) -> Iterator[av.VideoFrame]:
    """House frames, scaled and turned as a player would show them; all have the size of the first."""
    reformatter = VideoReformatter()
    codec: Codec = encoding.codec
    graph: _Graph | None = None
    size: tuple[int, int] | None = None
    for frame in frames:
        if size is None:
            size = fitted(frame.width, frame.height, encoding.short_side)
            turn = {90: "transpose=cclock", -90: "transpose=clock"}.get(frame.rotation, "")
            turn = "hflip,vflip" if abs(frame.rotation) == 180 else turn
        upright = house_frame(frame, *size, codec, reformatter)
        if turn:
            graph = graph or _Graph(upright, turn)
            yield from graph.through(upright)
        else:
            yield upright


def _resampled(frames: Iterator[av.VideoFrame], rate: Fraction, tally: _Tally) -> Iterator[av.VideoFrame]:
    """At n / rate the last frame that began by then, to half a step: FFmpeg's `fps` filter."""
    graph: _Graph | None = None
    start: int | None = None
    count = 0
    for frame in frames:
        # counted from the first frame: a late start must not move the grid
        if frame.pts is not None:
            start = frame.pts if start is None else start
            frame.pts -= start
        graph = graph or _Graph(frame, f"fps={rate.numerator}/{rate.denominator}")
        for resampled in graph.through(frame):
            count += 1
            if count > MOST_COPIES * (tally.frames + 10):
                raise Rejected("bad_times", f"{count} output frames from {tally.frames} decoded ones")
            yield resampled
    if graph is not None:
        yield from graph.through(None)


class _Graph:
    """One chain of FFmpeg filters for frames of one size, format and clock."""

    def __init__(self, like: av.VideoFrame, chain: str) -> None:
        self._graph = av.filter.Graph()
        nodes = [self._graph.add_buffer(None, like.width, like.height, like.format, None, like.time_base)]
        for step in chain.split(","):
            name, _, arguments = step.partition("=")
            nodes.append(self._graph.add(name, arguments or None))
        self._graph.link_nodes(*nodes, self._graph.add("buffersink")).configure()

    def through(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Push one frame, or the end; pull what comes out."""
        self._graph.vpush(frame)
        while True:
            try:
                yield self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
