"""One tar or one video looked at closely: the doctor's tasks."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import av

from shards.table import stamp
from shards.tar import Contents, Extent, index_text, walk
from shards.video.read import quiet

CHANGED = "the bytes are not those that were written"


@dataclass(frozen=True)
class TarSeen:
    """A tar as it lies there; `index` is "", or what is wrong with the file beside it."""

    name: str
    bytes: int
    sha256: str
    contents: Contents
    index: str


def examine_tar(tar: Path) -> TarSeen:
    """Read a tar whole: length, checksum, members, and whether its index says the same."""
    contents, index = walk(tar), tar.with_suffix(".idx")
    wrong = ""
    if not index.is_file():
        wrong = "missing"
    elif index.read_text(errors="replace") != index_text(contents.samples.items()):
        wrong = "wrong"
    return TarSeen(tar.name, contents=contents, index=wrong, **stamp(tar))


@dataclass(frozen=True)
class VideoTask:
    """A row's video and flow, and what the table says of them; tables of before have no checksum of the flow."""

    tar: Path
    video: Extent
    flow: Extent | None
    sha256: str
    num_frames: int
    size: tuple[int, int]  # width, height
    decode: bool
    flow_sha256: str | None = None


@dataclass(frozen=True)
class VideoSeen:
    """sha256 of the bytes that are there, and a kind of check.PROBLEMS with its detail, or ""."""

    sha256: str
    problem: str = ""
    detail: str = ""


def examine_video(task: VideoTask) -> VideoSeen:
    """Compare a row with its bytes, and, when asked to, with every frame they decode to."""
    data = _read(task.tar, task.video)
    digest = hashlib.sha256(data).hexdigest()
    if not task.decode:
        changed = ("checksum", CHANGED) if digest != task.sha256 else _flow_changed(task)
        return VideoSeen(digest, *(changed or ()))
    width, height = task.size
    try:
        frames, shape = _count_frames(data)
    except (av.FFmpegError, ValueError, IndexError) as error:
        return VideoSeen(digest, "undecodable", str(error).splitlines()[0])
    if digest != task.sha256:
        return VideoSeen(digest, "checksum", CHANGED)
    if frames != task.num_frames:
        return VideoSeen(digest, "frame_count", f"{frames} frames decode, the table says {task.num_frames}")
    if shape != (width, height):
        return VideoSeen(digest, "frame_count", f"{shape} pixels decode, the table says {(width, height)}")
    if task.flow:
        if changed := _flow_changed(task):
            return VideoSeen(digest, *changed)
        try:
            frames, shape = _count_frames(_read(task.tar, task.flow))
        except (av.FFmpegError, ValueError, IndexError) as error:
            return VideoSeen(digest, "flow", str(error).splitlines()[0])
        if (frames, shape) != (task.num_frames, (width, 2 * height)):
            found = f"{frames} frames of {shape} pixels, not {task.num_frames} of {(width, 2 * height)}"
            return VideoSeen(digest, "flow", found)
    return VideoSeen(digest)


def _flow_changed(task: VideoTask) -> tuple[str, str] | None:
    if task.flow is None or task.flow_sha256 is None:
        return None
    digest = hashlib.sha256(_read(task.tar, task.flow)).hexdigest()
    return ("flow", CHANGED) if digest != task.flow_sha256 else None


def _read(tar: Path, extent: Extent) -> bytes:
    with tar.open("rb") as handle:
        handle.seek(extent.offset)
        return handle.read(extent.size)


def _count_frames(data: bytes) -> tuple[int, tuple[int, int]]:
    """(frames, (width, height)), by decoding all of them."""
    quiet()
    count, shape = 0, (0, 0)
    with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            count, shape = count + 1, (frame.width, frame.height)
    return count, shape
