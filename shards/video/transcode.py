"""Any video in, one house-style clip out: the whole stream is decoded and its frames are counted."""

import errno
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from shards.video.encode import Encoding, write_mp4
from shards.video.pictures import fitted, resampled, upright
from shards.video.read import (
    REASONS,
    WHOLE_ENOUGH,
    Rejected,
    Tally,
    check_no_still,
    check_whole,
    decoded,
    frame_rate,
    largest_video,
    message,
    opened,
    quiet,
)
from shards.video.repeats import find_repeats

__all__ = ["REASONS", "Clip", "Encoding", "Rejected", "fitted", "quiet", "transcode"]

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Clip:
    """One encoded video; frame n has time n / fps. `seen` describes the source.

    data: the mp4, as bytes or, when a file was asked for, as that file. flow: the mp4 of its optical flow, likewise,
    when that was asked for.
    """

    data: Any = field(repr=False)
    num_frames: int
    fps: float
    width: int
    height: int
    seen: dict[str, Any] = field(default_factory=dict)
    flow: Any = field(default=None, repr=False)


def transcode(
    source: Path | bytes,
    encoding: Encoding,
    scratch: Path | None = None,
    *,
    into: Path | None = None,
    keep_damaged: float = WHOLE_ENOUGH,
    keep_stills: bool = False,
) -> Clip:
    """Decode a whole video, a file or its bytes, and encode it as `encoding` says.

    scratch: folder for the temporary mp4. into: the file, on the same disk, that the mp4 becomes; None: its bytes are in
    the clip. keep_damaged: the least share of the frames announced that must
    decode soundly. keep_stills: take pictures and drawn text as well. Of several video streams the largest picture is
    taken; it is turned and mirrored as its tags say, and its pixels made square. Raises Rejected, and av.FFmpegError with
    one of DISK_TROUBLE's numbers, and Unread.
    """
    with opened(source) as container, tempfile.TemporaryDirectory(dir=scratch, prefix="encode-") as folder:
        if not keep_stills:
            check_no_still(container)
        stream = largest_video(container)
        stream.codec_context.thread_count = 1
        path = Path(folder) / "clip.mp4"
        own_rate = frame_rate(stream)
        repeats = find_repeats(source, container, stream)
        tally = Tally(repeats=repeats.count if stream.frames else 0)
        frames = upright(decoded(container, stream, own_rate, tally), encoding, stream.sample_aspect_ratio)
        if encoding.fps is None:
            rate = repeats.rate(own_rate)
        else:
            rate = Fraction(encoding.fps).limit_denominator(1001)
            frames = resampled(frames, rate, tally, stays=repeats.trailing / own_rate)
        try:
            written = write_mp4(frames, path, rate, encoding)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError) or error.errno in DISK_TROUBLE:
                raise  # not the frames' fault
            size = f"{stream.width}x{stream.height}"
            raise Rejected("not_encodable", f"{encoding.codec} of {size}: {message(error)}") from error
        if not keep_stills:
            check_no_still(container, tally.frames)
        fraction = check_whole(container, stream, tally, keep_damaged)
        if written.num_frames == 0:
            raise Rejected("no_frames", f"{tally.frames} frames decode, none is shown at {rate} frames/s")
        seen = describe(stream, tally.frames, fraction)
        return Clip(moved(path, into), written.num_frames, float(rate), written.width, written.height, seen)


def moved(path: Path, into: Path | None) -> bytes | Path:
    """The content of a temporary file: as the file `into`, or as bytes."""
    return path.read_bytes() if into is None else path.replace(into)


def describe(stream: av.VideoStream, frames: int, fraction: float | None) -> dict[str, Any]:
    """Facts of a source that go into a sample's json."""
    return {
        "source_codec": stream.codec_context.name,
        "source_width": stream.width,
        "source_height": stream.height,
        "source_fps": float(frame_rate(stream)),
        "source_frames": frames,
        "decoded_fraction": fraction,
    }
