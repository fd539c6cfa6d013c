"""What is done to one video, in a worker process."""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shards.build.pool import Reject
from shards.build.scan import Member
from shards.errors import InputError, require
from shards.video.encode import Encoding
from shards.video.flow import Algorithm, Flow, flow_video
from shards.video.read import IO_ERROR, WHOLE_ENOUGH, Rejected, Unread, watched, write_video
from shards.video.transcode import DISK_TROUBLE, Clip, transcode

PAUSES = (0.5, 1.5, 4.0)  # seconds between tries at a file that the disk does not give


@dataclass(frozen=True)
class Processing:
    """What is done to every video of a data set."""

    encoding: Encoding = field(default_factory=Encoding)
    copy: bool = False
    """Keep the encoded frames of videos that have this codec, size, GOP, B-frames and rate already."""
    frames_fps: float | None = None
    """Folders of extracted frames (JPEG or PNG, in the order of the numbers in their names) are videos, of this many frames
    per second. Without it pictures are left out."""
    keep_damaged: float = WHOLE_ENOUGH
    """Least share of the frames announced that must decode soundly; the table has the share. 0 keeps every frame."""
    keep_stills: bool = False
    """Take pictures (HEIC, AVIF, GIF of one frame) and text that FFmpeg draws (ANSI art) for videos as well."""
    flow: Algorithm | None = None
    """Optical flow stored as KEY.flow.mp4: TV-L1 as in the papers, or DIS, many times faster."""
    flow_limit: float = Flow.limit
    """Pixels a frame at which flow is clipped before it becomes 8 bits: MemDPC 20, TCP 10."""

    def __post_init__(self) -> None:
        rate = self.frames_fps is None or 0 < self.frames_fps <= 1000
        require(
            self,
            ("keep_damaged", 0 <= self.keep_damaged <= 1, "give a share from 0 to 1"),
            ("frames_fps", rate, "give frames per second, above 0 and at most 1000"),
        )
        if self.flow:
            Flow(self.flow, self.flow_limit)  # which raises InputError for an odd limit

    @property
    def stored_flow(self) -> Flow | None:
        return Flow(self.flow, self.flow_limit) if self.flow else None

    def settings(self, made_for: str | None, stride: int | None) -> dict[str, Any]:
        """As dataset.json tells it. made_for: a method that the data set suits, which takes every `stride`-th frame."""
        settings = self.encoding.settings()
        settings |= {name: getattr(self, name) for name in ("copy", "keep_damaged", "keep_stills", "flow")}
        more = {"flow_limit": self.flow and self.flow_limit, "for": made_for}
        more |= {"frames_fps": self.frames_fps, "stride": stride}
        return settings | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class Task:
    """One video to attempt. scratch: a folder for temporary files, made when it is not there.

    member: the video in the tar `path`; None where `path` is the video.
    """

    path: Path
    processing: Processing
    scratch: Path
    member: Member | None = None


def process_video(task: Task) -> Clip | Reject:
    """One video's clip, whose mp4 is a file in the task's scratch folder: a long one fits no pipe and no memory.

    No error of one video may end a job of a hundred thousand. What the disk does not give is asked for again.

    Raises OSError for a full disk or the like, InputError when flow cannot be computed here: no video's fault.
    """
    task.scratch.mkdir(exist_ok=True)
    for pause in (*PAUSES, None):
        try:
            return _process(task)
        except Unread as error:
            said = error.strerror
            if pause is not None:
                time.sleep(pause)
    return Reject(IO_ERROR, f"{said}, {len(PAUSES) + 1} times tried")


def _process(task: Task) -> Clip | Reject:
    try:
        with _on_disk(task) as path:
            return _clip(path, task.processing, task.scratch)
    except Rejected as rejected:
        return Reject(rejected.reason, rejected.detail)
    except MemoryError as error:
        return Reject("out_of_memory", str(error) or "an allocation failed")
    except (OSError, InputError):
        raise
    except Exception as error:
        number = getattr(error, "errno", 0)
        if number in DISK_TROUBLE:
            raise OSError(number, os.strerror(number), str(task.scratch)) from error
        return Reject("unexpected", f"{type(error).__name__}: {error}")


@contextmanager
def _on_disk(task: Task) -> Iterator[Path]:
    """The video as a file of its own; a tar's member is copied into one, and so are the pictures of a folder."""
    if task.processing.frames_fps and task.path.is_dir():
        with tempfile.NamedTemporaryFile(dir=task.scratch, suffix=".avi") as joined:
            write_video(task.path, task.processing.frames_fps, Path(joined.name))
            yield Path(joined.name)
        return
    if task.member is None:
        yield task.path
        return
    with watched(task.path) as tar, tempfile.NamedTemporaryFile(dir=task.scratch) as copied:
        tar.seek(task.member.offset)
        for left in range(task.member.size, 0, -(2**20)):
            copied.write(tar.read(min(left, 2**20)))
        copied.flush()
        yield Path(copied.name)


def _clip(path: Path, processing: Processing, scratch: Path) -> Clip:
    encoding = processing.encoding
    name = uuid.uuid4().hex
    clip = transcode(
        path,
        encoding,
        scratch,
        into=scratch / f"{name}.mp4",
        keep_damaged=processing.keep_damaged,
        keep_stills=processing.keep_stills,
        copy=processing.copy,
    )
    if processing.stored_flow is None:
        return clip
    flow = flow_video(clip.data, processing.stored_flow, encoding, scratch / f"{name}.flow.mp4")
    return replace(clip, flow=flow)
