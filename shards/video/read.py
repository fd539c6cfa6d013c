"""Any video file as a stream of frames, with a tally of what came against what the container announced.

A folder of extracted frames is made such a file: its JPEGs or PNGs, not decoded, in an AVI.
"""

import errno
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType
from PIL import Image

WHOLE_ENOUGH = 0.9  # healthy HMDB51 clips decode 83 of 84 frames; half a file is not a sample
UNANNOUNCED = "an unannounced number"
# FFmpeg's names of what holds pictures, animated ones at best; and the brands of HEIF and AVIF that are never animated
PICTURES = re.compile(r".*_pipe|image2|ico|gif|apng|webp|jpegxl_anim")
# characters that FFmpeg draws: any text named .nfo is a video to it
DRAWN = ("tty", "bin", "xbin", "adf", "idf")
# what is wrong with a file itself, where it cannot be opened
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG)
STILL_BRANDS = ("heic", "heix", "heim", "heis", "mif1", "avif")
ANIMATED_BRANDS = ("hevc", "hevx", "msf1", "avis")

IO_ERROR = "io_error"
REASONS = {
    "missing": "the annotations list it, and it is not there",
    "unreadable": "the file cannot be opened or its folder not listed, or no container format is recognised in it",
    "no_video": "there is no video stream (audio, subtitles or cover art only)",
    "no_decoder": "the video's codec is not known to FFmpeg",
    "encrypted": "the video stream is encrypted",
    "still_picture": "a picture or drawn text (HEIC, AVIF, GIF of one frame, ANSI art), no video; --keep-stills takes it",
    "no_frames": "the video stream is there, but no frame decodes",
    "damaged": "less of it decodes soundly than --keep-damaged asks for, compared with what the container announces",
    "bad_times": "the time stamps are so far apart that resampling would repeat frames without end",
    "not_encodable": "the encoder refuses the frames (as a rule their size)",
    IO_ERROR: "the disk did not give the file; the same command tries it again",
    "timeout": "not done within --timeout",
    "out_of_memory": "needs more memory than --memory gives a worker",
    "crashed": "the decoder or encoder died of it, or the system killed it for its memory",
    "unexpected": "an error that this list does not foresee; the detail names it",
}
IMAGE = re.compile(r"(?!flow).*\.(jpe?g|png)", re.IGNORECASE)  # TSN keeps flow_x_… and flow_y_… beside img_…


class Rejected(Exception):
    """A video that does not become a sample: `reason` is a key of REASONS, `detail` what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass
class Tally:
    """What reading met. Times are seconds of the container's clock; `reached` is where any stream's data ended.

    unsound: those of `frames` that the decoder had to make up in part, and those that are predicted from one of them.
    repeats: what the container counts though it only says "show the last frame again".
    """

    frames: int = 0
    unsound: int = 0
    discarded: int = 0
    repeats: int = 0
    first: float | None = None
    end: float | None = None
    reached: float | None = None
    error: str = ""
    spoilt: bool = False  # until the next key frame

    @property
    def sound(self) -> int:
        return self.frames - self.unsound


def quiet() -> None:
    """Keep FFmpeg's remarks about damaged files off standard error: they are counted here instead."""
    av.logging.set_level(None)
    logging.getLogger("libav").setLevel(logging.CRITICAL)


class Unread(OSError):
    """The disk did not give a file, or a part of it: that says nothing about the video."""


class _Watched:
    """An open file that remembers what went wrong with it, though FFmpeg takes it for damage."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.trouble: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._handle.read(size))
        except OSError as error:
            self.trouble = error
            raise


@contextmanager
def watched(source: Path | bytes) -> Iterator[Any]:
    """A file, or its bytes, open for reading. Raises Unread where the disk does not give it, whoever caught that before.

    Raises Rejected where it may not be opened, or is no file.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        handle = source.open("rb")
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            raise Rejected("unreadable", str(error.strerror)) from error
        raise Unread(error.errno, error.strerror, str(source)) from error
    with handle:
        file = _Watched(handle)
        try:
            yield file
        finally:
            if file.trouble is not None:
                raise Unread(file.trouble.errno, file.trouble.strerror, str(source)) from file.trouble


@contextmanager
def opened(source: Path | bytes) -> Iterator[av.container.InputContainer]:
    """Open a video's file, or its bytes. Raises Rejected, and Unread."""
    quiet()
    with watched(source) as handle:
        try:
            # a playlist that calls itself .mp4 must not make us open what it names
            options = {"protocol_whitelist": "none"}
            container = av.open(handle, "r", metadata_errors="ignore", options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            raise Rejected("unreadable", message(error)) from error
        with container:
            yield container


def largest_video(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream with the largest picture, of equal ones the longest, and no cover art. Raises Rejected."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise Rejected("no_video", f"the file holds {kinds} only")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise Rejected("no_decoder", "the codec of the video stream is unknown to FFmpeg")
    return max(known, key=lambda stream: (stream.width * stream.height, stream.frames))


def check_no_still(container: av.container.InputContainer, frames: int | None = None) -> None:
    """Raise Rejected for what is a picture or drawn text: by its format, and, once they are known, by its frames."""
    name, brand = container.format.name, container.metadata.get("major_brand", "").strip()
    if name in DRAWN:
        raise Rejected("still_picture", f"text that FFmpeg draws (format {name})")
    if brand in STILL_BRANDS:
        raise Rejected("still_picture", f"a picture ({brand})")
    if frames == 1 and (PICTURES.fullmatch(name) or brand in ANIMATED_BRANDS):
        raise Rejected("still_picture", f"one picture ({brand or name})")


def frame_rate(stream: av.VideoStream) -> Fraction:
    """The stream's average frames per second."""
    return _plausible(stream.average_rate) or _plausible(stream.guessed_rate) or Fraction(25)


def decoded(stream: av.VideoStream, rate: Fraction, tally: Tally) -> Iterator[av.VideoFrame]:
    """Every frame, up to the end or the first error, which is noted in `tally`; every frame has a time.

    Raises Rejected when the frames are encrypted, MemoryError when FFmpeg gets no memory: neither is damage.
    """
    container: Any = stream.container
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                tally.reached = max(end, tally.reached or end)
            if packet.stream.index != stream.index:
                continue
            if packet.size == 0 and packet.buffer_ptr:  # the one that ends the stream has no data
                tally.repeats += 1
                continue
            if packet.has_sidedata("encryption_info"):
                raise Rejected("encrypted", "its frames need a key")
            tally.discarded += packet.is_discard
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                _timed(frame, stream, rate, tally)
                yield frame
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, MemoryError):
            raise
        tally.error = message(error)


def _decoded_fraction(stream: av.VideoStream, tally: Tally) -> tuple[str, float | None]:
    """What the container announces, in words, and how much of it came sound; None when it announces nothing."""
    # a clip cut without encoding keeps frames before its start, which no player shows
    announced = stream.frames - tally.discarded - tally.repeats
    if announced > 0:
        return f"{announced} announced", tally.sound / announced
    share = tally.sound / tally.frames if tally.frames else 1.0
    first = tally.first or 0.0
    # Matroska counts no frames, but its muxers note the time at which each track ends
    end, came = _noted_end(stream), tally.end
    container: Any = stream.container
    kind = container.format.name.split(",")[0]
    if end is None and container.duration and kind in ("matroska", "flv", "asf"):
        # the end of the whole file, its sound's included: compare with where any stream's data end
        end, came = container.duration / av.time_base, max(tally.reached or first, tally.end or first)
    if end is None or end <= first:
        return UNANNOUNCED, share if tally.unsound else None
    covered = (came or first) - first
    return f"{end - first:.2f} s announced ({covered:.2f} s came)", share * covered / (end - first)


def check_whole(stream: av.VideoStream, tally: Tally, keep_damaged: float) -> float | None:
    """The share of what the container announces that came. Raises Rejected below `keep_damaged`.

    When the container announces nothing, an error on the way is what counts; keep_damaged 0 keeps that too.
    """
    announced, fraction = _decoded_fraction(stream, tally)
    unknown = announced == UNANNOUNCED and tally.error and keep_damaged > 0
    if unknown or (fraction is not None and fraction < keep_damaged):
        then = f", then: {tally.error}" if tally.error else ""
        enough_came = fraction is not None and fraction * tally.frames >= keep_damaged * tally.sound
        unsound = f"; damage shows in {tally.unsound} of them" if tally.unsound and enough_came else ""
        raise Rejected("damaged", f"{tally.frames} frames decode of {announced}{then}{unsound}")
    if tally.frames == 0:
        raise Rejected("no_frames", f"{stream.codec_context.name}: the stream ends without a frame")
    return fraction


def message(error: Exception) -> str:
    """One line of what FFmpeg or the system says."""
    return str(getattr(error, "strerror", None) or error).split("\n")[0]


def _timed(frame: av.VideoFrame, stream: av.VideoStream, rate: Fraction, tally: Tally) -> None:
    clock = frame.time_base or stream.time_base or 1 / rate
    if frame.pts is None:
        frame.time_base = clock
        frame.pts = round((0.0 if tally.end is None else tally.end) / clock)
    start = float(frame.pts * clock)
    tally.first = start if tally.first is None else min(start, tally.first)
    tally.end = max(start + float(1 / rate), tally.end or start)
    tally.frames += 1
    if frame.is_corrupt:
        # nothing refers to a B-frame, or hardly anything: it spoils none but itself
        tally.spoilt = tally.spoilt or frame.pict_type != PictureType.B
    elif frame.key_frame:
        tally.spoilt = False
    tally.unsound += frame.is_corrupt or tally.spoilt


def _noted_end(stream: av.VideoStream) -> float | None:
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None


def _plausible(rate: Fraction | None) -> Fraction | None:
    # an mp4's time scale is the rate's numerator, 32 bits at most
    return rate.limit_denominator(100_000) if rate and 0.01 <= rate <= 1000 else None


def images(folder: Path) -> list[Path]:
    """The pictures in a folder in the order of the numbers in their names: frame2 comes before frame10."""
    names = [one for one in folder.iterdir() if IMAGE.fullmatch(one.name) and not one.name.startswith(".")]
    return sorted(names, key=lambda one: ([int(part) for part in re.findall(r"\d+", one.stem)], one.name))


def write_video(folder: Path, fps: float, into: Path) -> None:
    """Write the pictures of `folder` to `into`, byte for byte, `fps` of them a second.

    Raises Rejected where they are not pictures of one kind and one series, Unread where the disk does not give one.
    """
    frames = images(folder)
    series = {re.sub(r"\d+", "#", one.stem) for one in frames}
    if len(series) > 1:
        first = ", ".join(sorted(series)[:3])
        raise Rejected("unreadable", f"pictures of {len(series)} series ({first}); a video is one")
    if len(frames) < 2:
        raise Rejected("no_frames", f"{len(frames)} JPEG or PNG pictures in the folder")
    with av.open(str(into), "w", format="avi") as file:
        stream, kind = None, None
        for number, path in enumerate(frames):
            data, codec, (width, height) = _picture(path)
            kind = kind or codec
            if codec != kind:
                raise Rejected("damaged", f"{path.name}: not of the first picture's kind")
            if stream is None:
                rate = Fraction(fps).limit_denominator(1001)
                stream = file.add_mux_stream(codec, rate=rate, width=width, height=height)
                stream.time_base = 1 / rate
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            file.mux(packet)


def _picture(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """A picture's bytes, FFmpeg's name of its codec, width and height."""
    with watched(path) as handle:
        data = handle.read()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            return data, "png" if picture.format == "PNG" else "mjpeg", picture.size
    except Exception as error:  # Pillow has many for a damaged file
        raise Rejected("damaged", f"{path.name}: no JPEG or PNG") from error
