"""--in-place: tars that others made become a data set where they lie; only table, index and description are written."""

import hashlib
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from shards.atomic import atomic_write
from shards.build.finish import Summary
from shards.build.pool import Crashed, in_order
from shards.build.run import Limits, Progress
from shards.build.scan import Found, Member, Source
from shards.documents import problem
from shards.errors import InputError
from shards.schema import DESCRIPTION, KEY, is_tar
from shards.table import publish, stamp
from shards.tar import Shard, index_text, walk
from shards.video.encode import Encoding
from shards.video.mp4 import DecodeError, read_index
from shards.video.pictures import turn
from shards.video.read import Rejected, Tally, decoded, frame_rate, largest_video, opened
from shards.video.remux import LONGEST_OFFSET

MAKE_ANEW = "leave --in-place out, and they are encoded into a new data set"


@dataclass(frozen=True)
class _Task:
    source: Source
    member: Member
    encoding: Encoding


@dataclass(frozen=True)
class Unsuited:
    """A video that cannot stay as it is."""

    detail: str


def index_in_place(
    found: Found, encoding: Encoding, limits: Limits | None = None, progress: Progress | None = None
) -> Summary:
    """Make the folder of WebDataset tars a data set; the tars stay as they are.

    A video suits when it is a member `mp4` with the codec of `encoding`, yuv420p, frames at a steady rate (that of
    `encoding.fps`, where given), a short side and GOPs that are no longer than those of `encoding`, not turned, and every
    frame of it decodes. Raises InputError, and writes nothing, when one of them does not: the line names the row and why.
    """
    limits = limits or Limits()
    if found.layout != "webdataset":
        raise InputError(f"--in-place: the videos lie in files ({found.layout}), not in tars; leave it out")
    folder = _folder(found)
    tasks = [_Task(source, source.member, encoding) for source in found.sources if source.member]
    twice = [key for key, count in Counter(task.member.key for task in tasks).items() if count > 1]
    if twice:
        raise InputError(f"--in-place: the key {twice[0]} is in the tars twice; {MAKE_ANEW}")
    contents = {}
    for tar in sorted({source.path for source in found.sources}):
        contents[tar] = walk(tar)
        if contents[tar].problem:
            raise InputError(f"--in-place: {tar} {contents[tar].problem}; fetch it again, or {MAKE_ANEW}")
    rows: dict[Path, list[dict[str, Any]]] = {tar: [] for tar in contents}
    label_of = {name: label for label, name in enumerate(found.classes)}
    with closing(
        in_order(_look, tasks, limits.workers, timeout=limits.timeout, memory=limits.memory)
    ) as results:
        for number, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
            source, key = task.source, task.member.key
            members = contents[source.path].samples.get(key, {})
            if isinstance(result, Crashed | Unsuited) or "mp4" not in members:
                why = getattr(result, "detail", f"its key is not {key}, as its folder has a dot in its name")
                raise InputError(f"--in-place: {source.relative} does not suit: {why}; {MAKE_ANEW}")
            row = result | {"key": key, "shard": source.path.name, "source": source.relative}
            row |= {"label": label_of.get(source.label_name or "", -1), "label_name": source.label_name}
            row |= {"split": source.split}
            for component, extent in members.items():
                row[f"{component}_offset"], row[f"{component}_size"] = extent
            rows[source.path].append(row)
            if progress:
                progress(number, len(tasks))
    return _publish(folder, found, encoding, rows, contents)


def _publish(
    folder: Path,
    found: Found,
    encoding: Encoding,
    rows: dict[Path, list[dict[str, Any]]],
    contents: dict[Path, Any],
) -> Summary:
    shards = []
    for tar, some in rows.items():
        with atomic_write(tar.with_suffix(".idx")) as temporary:
            temporary.write_text(index_text(contents[tar].samples.items()))
        seen = stamp(tar)
        shards.append(asdict(Shard(tar.name, seen["bytes"], seen["sha256"], some)))
    rejected = [
        {"source": name, "reason": "unreadable", "detail": why} for name, why in found.unreadable.items()
    ]
    settings: dict[str, Any] = {
        "codec": encoding.codec,
        "short_side": encoding.short_side,
        "gop": encoding.gop,
    }
    settings |= {"fps": encoding.fps, "layout": found.layout, "in_place": True}
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


def _look(task: _Task) -> dict[str, Any] | Unsuited:
    """What the table says of a video, or why it does not suit."""
    if wrong := problem(task.member.key, KEY, "its key"):
        return Unsuited(wrong)
    if task.member.name != "mp4":
        return Unsuited(f"it is a {task.member.name}, not an mp4")
    with open(task.source.path, "rb") as tar:
        tar.seek(task.member.offset)
        data = tar.read(task.member.size)
    try:
        with opened(data) as container:
            return _facts(container, data, task.encoding)
    except (Rejected, DecodeError, av.FFmpegError, ValueError) as error:
        return Unsuited(getattr(error, "detail", None) or str(error))


def _facts(
    container: av.container.InputContainer, data: bytes, encoding: Encoding
) -> dict[str, Any] | Unsuited:
    stream, tally = largest_video(container), Tally()
    context, rate, indexed = stream.codec_context, frame_rate(stream), read_index(data).num_frames
    context.thread_count = 1
    short = min(stream.width, stream.height)
    for wrong, why in (
        (context.name != encoding.codec, f"codec {context.name}, not --codec {encoding.codec}"),
        (context.pix_fmt not in ("yuv420p", "yuvj420p"), f"pixel format {context.pix_fmt}, not yuv420p"),
        (short > encoding.short_side, f"short side {short}, more than --short-side {encoding.short_side}"),
        (encoding.fps not in (None, float(rate)), f"{float(rate):g} frames/s, not --fps {encoding.fps}"),
    ):
        if wrong:
            return Unsuited(why)
    start: Fraction | None = None
    number = last_key = 0
    for number, frame in enumerate(decoded(container, stream, rate, tally), 1):
        assert frame.pts is not None and frame.time_base is not None
        time = frame.pts * frame.time_base
        start = time if start is None else start
        last_key = number if frame.key_frame else last_key
        if last_key == 0 or number - last_key >= encoding.gop:
            gop = f"no key frame in {number - last_key + 1} frames"
            return Unsuited(f"{gop}, more than --gop {encoding.gop}")
        if turn(frame) or (frame.width, frame.height) != (stream.width, stream.height):
            return Unsuited(f"frame {number} is turned or of another size")
        if abs((time - start) * rate - (number - 1)) > LONGEST_OFFSET:
            return Unsuited(f"frame {number} is not shown at a steady {float(rate):g} frames/s")
    if tally.error or tally.unsound or number != indexed:
        return Unsuited(f"{tally.sound} of {indexed} frames decode soundly {tally.error}".strip())
    facts = {"num_frames": number, "fps": float(rate), "width": stream.width, "height": stream.height}
    return facts | {"sha256": hashlib.sha256(data).hexdigest()}
