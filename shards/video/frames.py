"""A folder of extracted frames as one video file: its JPEGs or PNGs, not decoded, in an AVI."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from shards.errors import InputError
from shards.video.read import Rejected, watched

IMAGE = re.compile(r"(?!flow).*\.(jpe?g|png)", re.IGNORECASE)  # TSN keeps flow_x_… and flow_y_… beside img_…
_MAGIC = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG\r\n\x1a\n": "png"}
_FASTEST = 1000.0


def check_rate(fps: float) -> None:
    """Raises InputError for what is no frame rate."""
    if not 0 < fps <= _FASTEST:
        raise InputError(f"--frames-fps {fps:g}: give frames per second, above 0 and at most {_FASTEST:g}")


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
            with watched(path) as picture:
                data = picture.read()
            codec = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
            kind = kind or codec
            if codec is None or codec != kind:
                what = "no JPEG or PNG" if codec is None else "not of the first picture's kind"
                raise Rejected("damaged", f"{path.name}: {what}")
            if stream is None:
                width, height = _size(data, codec, path.name)
                rate = Fraction(fps).limit_denominator(1001)
                stream = file.add_mux_stream(codec, rate=rate, width=width, height=height)
                stream.time_base = 1 / rate
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            file.mux(packet)


def _size(data: bytes, codec: str, name: str) -> tuple[int, int]:
    decoder: Any = av.CodecContext.create(codec, "r")
    try:
        frames = decoder.decode(av.Packet(data)) or decoder.decode(None)
        return frames[0].width, frames[0].height
    except (av.FFmpegError, IndexError) as error:
        raise Rejected("damaged", f"{name}: no picture decodes") from error
