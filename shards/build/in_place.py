"""--in-place: tars that others made become a data set where they lie; only table, index and description are written."""

import hashlib
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from shards.build.finish import Summary
from shards.build.pool import Reject, in_order
from shards.build.run import Limits, Progress
from shards.build.scan import Found, Member, Source
from shards.documents import problem
from shards.errors import InputError
from shards.schema import DESCRIPTION, KEY, is_tar
from shards.table import publish, stamp
from shards.tar import Contents, Extent, Shard, places, read_extent, walk, write_index
from shards.video.encode import Encoding
from shards.video.mp4 import DecodeError, read_index
from shards.video.read import Rejected, Tally, frame_rate, largest_video, opened
from shards.video.transcode import unlike_house

MAKE_ANEW = "leave --in-place out, and they are encoded into a new data set"


@dataclass(frozen=True)
class _Task:
    source: Source
    member: Member
    encoding: Encoding


def index_in_place(
    found: Found, encoding: Encoding, limits: Limits | None = None, progress: Progress | None = None
) -> Summary:
    """Make the folder of WebDataset tars a data set; the tars stay as they are.

    A video suits when it is a member `mp4` with the codec of `encoding`, yuv420p, frames at a steady rate (that of
    `encoding.fps`, where given), a short side and GOPs that are no longer than those of `encoding`, not turned, and
    every frame of it decodes. Raises InputError, and writes nothing, when one of them does not: the line names the row
    and why.
    """
    if found.layout != "webdataset":
        raise InputError(f"--in-place: the videos lie in files ({found.layout}), not in tars; leave it out")
    folder, limits = _folder(found), limits or Limits()
    tasks = [_Task(source, source.member, encoding) for source in found.sources if source.member]
    twice = [key for key, count in Counter(task.member.key for task in tasks).items() if count > 1]
    if twice:
        raise InputError(f"--in-place: the key {twice[0]} is in the tars twice; {MAKE_ANEW}")
    contents: dict[Path, Contents] = {}
    for tar in sorted({source.path for source in found.sources}):
        contents[tar] = walk(tar)
        if contents[tar].problem:
            raise InputError(f"--in-place: {tar} {contents[tar].problem}; fetch it again, or {MAKE_ANEW}")
    rows: dict[Path, list[dict[str, Any]]] = {tar: [] for tar in contents}
    results = in_order(_facts, tasks, limits.workers, timeout=limits.timeout, memory=limits.memory)
    with closing(results):
        for number, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
            source, key = task.source, task.member.key
            if isinstance(result, Reject):
                raise InputError(f"--in-place: {source.relative} does not suit: {result.detail}; {MAKE_ANEW}")
            label = -1 if source.label_name is None else found.classes.index(source.label_name)
            row = {"key": key, "shard": source.path.name, "source": source.relative, "label": label}
            row |= {"label_name": source.label_name, "split": source.split}
            rows[source.path].append(result | row | places(contents[source.path].samples[key]))
            if progress:
                progress(number, len(tasks))
    shards = []
    for tar, some in rows.items():
        seen = stamp(tar)
        write_index(tar, contents[tar].samples.items())
        shards.append(asdict(Shard(tar.name, seen["bytes"], seen["sha256"], some)))
    rejected = [
        {"source": name, "reason": "unreadable", "detail": why} for name, why in found.unreadable.items()
    ]
    settings: dict[str, Any] = {
        name: getattr(encoding, name) for name in ("codec", "short_side", "gop", "fps")
    }
    settings |= {"layout": found.layout, "in_place": True}
    info = publish(folder, found.classes, shards, settings, rejected, name=folder.resolve().name)
    return Summary(info["rows"], sum(one["size"] for one in shards), info["rejected"])


def _folder(found: Found) -> Path:
    folders = sorted({source.path.parent for source in found.sources})
    if len(folders) > 1:
        raise InputError(
            f"--in-place: the tars lie in {len(folders)} folders, such as {folders[1]}; give one of them"
        )
    if (folders[0] / DESCRIPTION).exists():
        raise InputError(
            f"--in-place: {folders[0]} has a {DESCRIPTION} already; train on it, or remove that file"
        )
    if odd := [source.path.name for source in found.sources if not is_tar(source.path.name)]:
        raise InputError(f"--in-place: {odd[0]!r} is no name for a tar of a data set; rename it")
    return folders[0]


def _facts(task: _Task) -> dict[str, Any] | Reject:
    """What the table says of a video, or why it does not suit."""
    member, encoding = task.member, task.encoding
    if wrong := problem(member.key, KEY, "its key"):
        return Reject("unsuited", wrong)
    if member.name != "mp4":
        return Reject("unsuited", f"it is a {member.name}, not an mp4")
    data = read_extent(task.source.path, Extent(member.offset, member.size))
    try:
        with opened(data) as container:
            stream, tally = largest_video(container), Tally()
            context, rate, indexed = stream.codec_context, frame_rate(stream), read_index(data).num_frames
            short = min(stream.width, stream.height)
            for differs, why in (
                (context.name != encoding.codec, f"codec {context.name}, not --codec {encoding.codec}"),
                (
                    context.pix_fmt not in ("yuv420p", "yuvj420p"),
                    f"pixel format {context.pix_fmt}, not yuv420p",
                ),
                (
                    short > encoding.short_side,
                    f"short side {short}, more than --short-side {encoding.short_side}",
                ),
                (
                    encoding.fps not in (None, float(rate)),
                    f"{float(rate):g} frames/s, not --fps {encoding.fps}",
                ),
            ):
                if differs:
                    return Reject("unsuited", why)
            unlike = unlike_house(container, stream, rate, encoding, tally)
            if unlike or tally.unsound or tally.frames != indexed:
                sound = f"{tally.sound} of {indexed} frames decode soundly"
                return Reject(
                    "unsuited", unlike if unlike and not tally.error else f"{sound} {unlike}".strip()
                )
            facts = {"num_frames": tally.frames, "fps": float(rate), "width": stream.width}
            return facts | {"height": stream.height, "sha256": hashlib.sha256(data).hexdigest()}
    except (Rejected, DecodeError, av.FFmpegError, ValueError) as error:
        return Reject("unsuited", getattr(error, "detail", None) or str(error))
