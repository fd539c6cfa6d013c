"""Any video in, one house-style clip out: the whole stream is decoded and its frames are counted.

A video that is encoded as the data set wants it already can be put into a house mp4 as it is (--copy).
"""

import errno
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType

from shards.video.encode import CONTAINER, Encoding, Written, write_mp4
from shards.video.pictures import find_repeats, fitted, resampled, turn, upright
from shards.video.read import (
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
)

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
LONGEST_OFFSET = Fraction(1, 4)  # of a frame: what rounding to a container's clock may move a time stamp


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
    copy: bool = False,
) -> Clip:
    """Decode a whole video, a file or its bytes, and encode it as `encoding` says.

    scratch: folder for the temporary mp4. into: the file, on the same disk, that the mp4 becomes; None: its bytes are
    in the clip. keep_damaged: the least share of the frames announced that must decode soundly. keep_stills: take
    pictures and drawn text as well. Of several video streams the largest picture is taken; it is turned and mirrored as
    its tags say, and its pixels made square. copy: keep the source's own encoded frames where they are as `encoding`
    asks; `seen` then says so. Raises Rejected, Unread, and av.FFmpegError with one of DISK_TROUBLE's numbers.
    """
    for make in (_copied, _encoded) if copy else (_encoded,):
        with (
            opened(source) as container,
            tempfile.TemporaryDirectory(dir=scratch, prefix="encode-") as folder,
        ):
            if not keep_stills:
                check_no_still(container)
            stream, path, tally = largest_video(container), Path(folder) / "clip.mp4", Tally()
            made = make(source, stream, encoding, tally, path)
            if made is None:
                continue
            written, rate = made
            if not keep_stills:
                check_no_still(container, tally.frames)
            seen = {
                "decoded_fraction": check_whole(stream, tally, keep_damaged),
                "source_codec": stream.codec_context.name,
                "source_width": stream.width,
                "source_height": stream.height,
                "source_fps": float(frame_rate(stream)),
                "source_frames": tally.frames,
            } | ({"copied": True} if make is _copied else {})
            if written.num_frames == 0:
                raise Rejected("no_frames", f"{tally.frames} frames decode, none is shown at {rate} frames/s")
            data = path.read_bytes() if into is None else path.replace(into)
            return Clip(data, written.num_frames, float(rate), written.width, written.height, seen)
    raise AssertionError  # whatever decodes is encoded


def _encoded(
    source: Path | bytes, stream: av.VideoStream, encoding: Encoding, tally: Tally, path: Path
) -> tuple[Written, Fraction]:
    """Encode the frames into `path`; gives what was written, and its frames a second."""
    stream.codec_context.thread_count = 1
    own_rate = frame_rate(stream)
    repeats = find_repeats(source, stream)
    tally.repeats = repeats.count if stream.frames else 0
    frames = upright(decoded(stream, own_rate, tally), encoding, stream.sample_aspect_ratio)
    if encoding.fps is None:
        rate = repeats.rate(own_rate)
    else:
        rate = Fraction(encoding.fps).limit_denominator(1001)
        frames = resampled(frames, rate, tally, stays=repeats.trailing / own_rate)
    try:
        return write_mp4(frames, path, rate, encoding), rate
    except av.FFmpegError as error:
        if isinstance(error, MemoryError) or error.errno in DISK_TROUBLE:
            raise  # not the frames' fault
        size = f"{stream.width}x{stream.height}"
        raise Rejected("not_encodable", f"{encoding.codec} of {size}: {message(error)}") from error


def _copied(
    source: Path | bytes, stream: av.VideoStream, encoding: Encoding, tally: Tally, path: Path
) -> tuple[Written, Fraction] | None:
    """Put the encoded frames themselves into `path`; None when they are not as `encoding` asks.

    They are when codec, pixel format, colour matrix, short side, rate and GOP agree, the rate is constant, the GOPs
    are closed and have no more B-frames in a row than asked for, and the picture is not turned or mirrored. Quality,
    preset, whether frames refer to B-frames, and `encoding.multiple` are not looked at: encoded frames cannot be
    cropped. The new file is decoded whole.
    """
    rate = frame_rate(stream)
    if not _suits(stream, rate, encoding) or find_repeats(source, stream).count:
        return None
    try:
        if not _remux(stream, rate, path, tally):
            return None
    except av.FFmpegError:
        return None  # the way over the frames will tell what is wrong with it
    with av.open(str(path), "r") as remuxed:
        decoding = Tally()
        unlike = unlike_house(remuxed.streams.video[0], rate, encoding, decoding, copied=True)
    if unlike or decoding.unsound or decoding.frames != tally.frames:
        return None
    return Written(tally.frames, stream.width, stream.height), rate


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


def _remux(stream: av.VideoStream, rate: Fraction, path: Path, tally: Tally) -> bool:
    """Write the packets, frame n at n / rate, and count them.

    False when there are none, the source's times are not steady, or a frame comes more than one early.
    """
    start: Fraction | None = None
    count = last_key = 0
    # PyAV tells whether frames are reordered, not how deep: with one ahead dts stays below pts, unless in a pyramid
    ahead = 1 if stream.codec_context.has_b_frames else 0
    container: Any = stream.container
    with av.open(str(path), "w", format="mp4", options=CONTAINER) as target:
        copied = target.add_stream_from_template(stream, opaque=True)
        copied.time_base = 1 / rate  # the muxer takes its clock from it: frame n at n / rate exactly
        if stream.codec_context.name == "hevc":
            copied.codec_context.codec_tag = "hvc1"
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt or packet.time_base is None:
                return False
            time = packet.pts * packet.time_base
            start = time if start is None else start
            number = round((time - start) * rate)
            last_key = number if packet.is_keyframe else last_key
            steady = abs((time - start) * rate - number) <= LONGEST_OFFSET
            if not steady or number < max(last_key, count - ahead):  # before its key frame: an open GOP
                return False
            packet.stream = copied
            packet.time_base = 1 / rate
            packet.pts, packet.dts = number, count - ahead
            packet.duration = 1
            target.mux(packet)
            count += 1
    if start is None:
        return False
    tally.frames, tally.first = count, float(start)
    tally.end = tally.reached = float(start + count / rate)
    return True


def unlike_house(
    stream: av.VideoStream, rate: Fraction, encoding: Encoding, tally: Tally, copied: bool = False
) -> str:
    """What makes a file another than our encoder would write, all of it decoded; "" where nothing does.

    copied: it also has no interlaced frames, and no more B-frames in a row than `encoding` has.
    """
    stream.codec_context.thread_count = 1
    start: Fraction | None = None
    last_key, b_frames, size = -1, 0, (stream.width, stream.height)
    for n, frame in enumerate(decoded(stream, rate, tally)):
        assert frame.pts is not None and frame.time_base is not None
        time = frame.pts * frame.time_base
        start = time if start is None else start
        last_key = n if frame.key_frame else last_key
        b_frames = b_frames + 1 if frame.pict_type == PictureType.B else 0
        if last_key < 0 or n - last_key >= encoding.key_every:
            return f"no key frame in {n - max(last_key, 0) + 1} frames, more than --gop {encoding.gop}"
        if turn(frame) or (frame.width, frame.height) != size:
            return f"frame {n + 1} is turned or of another size"
        if abs((time - start) * rate - n) > LONGEST_OFFSET:
            return f"frame {n + 1} is not shown at a steady {float(rate):g} frames/s"
        if copied and (frame.interlaced_frame or b_frames > encoding.b_frames_in_a_row):
            return f"frame {n + 1} is interlaced, or one B-frame too many"
    return tally.error
