"""--copy: a video that is encoded as the data set wants it already is put into a house mp4 as it is."""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import PictureType

from shards.video.encode import CONTAINER, Encoding
from shards.video.pictures import fitted, turn
from shards.video.read import (
    WHOLE_ENOUGH,
    Tally,
    check_no_still,
    check_whole,
    decoded,
    frame_rate,
    largest_video,
    opened,
)
from shards.video.repeats import find_repeats
from shards.video.transcode import Clip, describe, moved

LONGEST_OFFSET = Fraction(1, 4)  # of a frame: what rounding to a container's clock may move a time stamp


def copy(
    source: Path,
    encoding: Encoding,
    scratch: Path | None = None,
    *,
    into: Path | None = None,
    keep_damaged: float = WHOLE_ENOUGH,
    keep_stills: bool = False,
) -> Clip | None:
    """The clip whose encoded frames are the source's own; None when they are not as `encoding` asks.

    They are when codec, pixel format, colour matrix, short side, rate and GOP agree, the rate is constant, the GOPs
    are closed and have no more B-frames in a row than asked for, and the picture is not turned or mirrored. Quality,
    preset, whether frames refer to B-frames, and `encoding.multiple` are not looked at: encoded frames cannot be
    cropped. The new file is decoded whole. into: see `transcode`. Raises Rejected, and Unread.
    """
    with opened(source) as container, tempfile.TemporaryDirectory(dir=scratch, prefix="encode-") as folder:
        if not keep_stills:
            check_no_still(container)
        stream = largest_video(container)
        rate = frame_rate(stream)
        if not _suits(stream, rate, encoding) or find_repeats(source, container, stream).count:
            return None
        path = Path(folder) / "clip.mp4"
        try:
            count, tally = _remux(container, stream, rate, path)
        except av.FFmpegError:
            return None  # the way over the frames will tell what is wrong with it
        if count == 0:
            return None
        frames = _frames_conform(path, rate, encoding)
        if frames != count:
            return None
        tally.frames = frames
        if not keep_stills:
            check_no_still(container, frames)
        fraction = check_whole(container, stream, tally, keep_damaged)
        seen = describe(stream, frames, fraction) | {"copied": True}
        return Clip(moved(path, into), frames, float(rate), stream.width, stream.height, seen)


def _suits(stream: av.VideoStream, rate: Fraction, encoding: Encoding) -> bool:
    """Whether what the stream says of itself is what the encoding makes."""
    context = stream.codec_context
    size = (stream.width, stream.height)
    wanted_rate = rate if encoding.fps is None else Fraction(encoding.fps).limit_denominator(1001)
    # BT.601 by either name, or untagged where players take it for that; see encode.house_frame
    untagged = stream.width < 1280 and stream.height <= 576
    matrix = context.colorspace in (5, 6) or (context.colorspace == 2 and untagged)
    full = encoding.codec == "mjpeg"
    return (
        context.name == encoding.codec
        and context.pix_fmt == ("yuvj420p" if full else "yuv420p")
        and (full or context.color_range != 2)
        and matrix
        and size == fitted(*size, encoding.short_side)
        and rate == wanted_rate
        and (stream.sample_aspect_ratio or 1) == 1
    )


def _remux(
    container: av.container.InputContainer, stream: av.VideoStream, rate: Fraction, path: Path
) -> tuple[int, Tally]:
    """Write the packets, frame n at n / rate; 0 packets when the source's times are not steady, or a frame comes more than one early."""
    tally = Tally()
    start: Fraction | None = None
    count = last_key = 0
    # PyAV tells whether frames are reordered, not how deep: with one ahead dts stays below pts, unless in a pyramid
    ahead = 1 if stream.codec_context.has_b_frames else 0
    with av.open(str(path), "w", format="mp4", options=CONTAINER) as target:
        copied = target.add_stream_from_template(stream, opaque=True)
        copied.time_base = 1 / rate  # the muxer takes its clock from it: frame n at n / rate exactly
        if stream.codec_context.name == "hevc":
            copied.codec_context.codec_tag = "hvc1"
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt or packet.time_base is None:
                return 0, tally
            time = packet.pts * packet.time_base
            start = time if start is None else start
            number = round((time - start) * rate)
            last_key = number if packet.is_keyframe else last_key
            steady = abs((time - start) * rate - number) <= LONGEST_OFFSET
            if not steady or number < max(last_key, count - ahead):  # before its key frame: an open GOP
                return 0, tally
            packet.stream = copied
            packet.time_base = 1 / rate
            packet.pts, packet.dts = number, count - ahead
            packet.duration = 1
            target.mux(packet)
            count += 1
    if start is not None:
        tally.first, tally.end = float(start), float(start + count / rate)
        tally.reached = tally.end
    return count, tally


def _frames_conform(path: Path, rate: Fraction, encoding: Encoding) -> int:
    """The frames of the new file, all decoded; 0 when one of them is not as a house encoder would make it."""
    with av.open(str(path), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        tally, last_key, b_frames, size = Tally(), 0, 0, (stream.width, stream.height)
        for n, frame in enumerate(decoded(container, stream, rate, tally)):
            last_key = n if frame.key_frame else last_key
            b_frames = b_frames + 1 if frame.pict_type == PictureType.B else 0
            too_far = (n == 0 and not frame.key_frame) or n - last_key >= encoding.key_every
            turned = turn(frame) or frame.interlaced_frame or (frame.width, frame.height) != size
            if too_far or turned or b_frames > encoding.b_frames_in_a_row or frame.is_corrupt:
                return 0
            if frame.pts is None or abs(frame.time * rate - n) > LONGEST_OFFSET:
                return 0
        return 0 if tally.error else tally.frames
