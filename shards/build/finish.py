"""From finished tars to a data set: parts brought together; table, rejects and description, written last.

--in-place: tars that others made become a data set where they lie.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from shards.atomic import atomic_write, sweep
from shards.build.job import Job, Notes, check_same
from shards.build.pool import Limits, Reject, in_order
from shards.build.scan import Found, Member, Source
from shards.documents import problem, write_json_lines
from shards.errors import InputError
from shards.schema import DESCRIPTION, KEY, REJECTED, is_tar, read_description
from shards.storage import stamp
from shards.table import publish
from shards.tar import Contents, Extent, Shard, places, read_extent, walk, write_index
from shards.video.encode import Encoding
from shards.video.mp4 import DecodeError, read_index
from shards.video.read import Rejected, Tally, frame_rate, largest_video, opened
from shards.video.transcode import unlike_house

UNLISTED = "unlisted.txt"  # videos that the annotations do not list, a relative path a line
MAKE_ANEW = "leave --in-place out, and they are encoded into a new data set"


@dataclass(frozen=True)
class Summary:
    """Rows, bytes of the tars, and reason → rejected videos of a data set; `already`: nothing was done."""

    rows: int
    bytes: int
    rejected: dict[str, int]
    unlisted: int = 0
    already: bool = False


def already_made(job: Job) -> Summary | None:
    """The summary of a data set that is complete; None when it is not. Raises InputError when it is another."""
    if not (job.notes.out / DESCRIPTION).is_file():
        return None
    check_same(job.notes.out, read_description(job.notes.out)["settings"], job.settings)
    return None if job.unread else _summary(job.notes, len(job.found.unlisted), already=True)


def finish(notes: Notes) -> Summary:
    """Make finished shards a data set. Hold the folder's lock.

    Raises InputError when shards are not finished, or not one video became a sample.
    """
    outline = notes.outline
    assert outline is not None, notes.folder
    absent = [shard for shard in range(outline["shards"]) if not notes.is_finished(shard)]
    if absent:
        names = ", ".join(map(notes.stem, absent[:3])) + (", …" if len(absent) > 3 else "")
        found = f"{len(absent)} of {outline['shards']} shards are not made ({names})"
        raise InputError(f"{notes.out}: {found}; run make_shards.py on it, or its unfinished parts, again")
    made = [note for shard in range(outline["shards"]) if (note := notes.read(shard))]
    shards = [Shard(**note["shard"]) for note in made if note["shard"]]
    rejected = [*(reject for note in made for reject in note["rejected"]), *outline["absent"]]
    sweep(notes.out)
    if not shards:
        write_json_lines(notes.out / REJECTED, rejected)
        shutil.rmtree(notes.folder)
        first = "{source}, {reason}: {detail}".format(**rejected[0])
        found = f"none of {len(rejected) - len(outline['absent'])} files became a sample (the first: {first})"
        raise InputError(f"{notes.out}: {found}; see {notes.out / REJECTED} and give a folder of videos")
    if outline["unlisted"]:
        with atomic_write(notes.out / UNLISTED) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in outline["unlisted"]), encoding="utf-8")
    name = notes.out.resolve().name
    publish(notes.out, outline["classes"], shards, outline["settings"], rejected, name=name)
    return _summary(notes, len(outline["unlisted"]))


def _summary(notes: Notes, unlisted: int = 0, already: bool = False) -> Summary:
    """The summary of a complete data set. Its notes go, unless they say what the disk did not give."""
    outline = notes.outline
    if not any(notes.unread(shard) for shard in range(outline["shards"] if outline else 0)):
        shutil.rmtree(notes.folder, ignore_errors=True)
    info = read_description(notes.out)
    size = sum(tar["bytes"] for tar in info["tars"].values())
    return Summary(info["rows"], size, info["rejected"], unlisted, already)


def merge(out: Path, parts: Sequence[Path] = ()) -> Summary:
    """Move the shards of `parts` into `out`, and make `out` the data set that one process would have made.

    parts: folders that `make_shards.py --part` wrote, of the same name as `out`; none when every part wrote
    into `out` itself. Stopped half way, it continues when called again; called once more, it finds the set complete.
    Raises InputError when a shard is not there, a folder holds no part, or the parts are not of one job.
    """
    target = Notes(out)
    others = [part for part in parts if part.resolve() != out.resolve()]
    if (out / DESCRIPTION).is_file():
        if full := [part for part in others if any(part.glob("*.tar"))]:
            found = f"holds shards, but {out} is complete without them"
            raise InputError(f"{full[0]}: {found}; give the set that they belong to")
        summary = _summary(target, already=True)
    else:
        for part in others:
            _check_part(out, part)
        if not others and target.outline is None:
            raise InputError(f"{out}: holds no unfinished data set; give the folder that --part wrote into")
        with ExitStack() as locks:
            for notes in (target, *map(Notes, others)):
                locks.enter_context(notes.locked())
            for part in others:
                _take(target, Notes(part))
            summary = finish(target)
    for part in others:  # what it leaves behind
        shutil.rmtree(Notes(part).folder, ignore_errors=True)
        with suppress(OSError):  # it holds something else too
            part.rmdir()
    return summary


def _check_part(out: Path, part: Path) -> None:
    if Notes(part).outline is None:
        found = "holds no part of a data set"
        raise InputError(f"{part}: {found}; give a folder that make_shards.py --part wrote")
    if part.resolve().name != out.resolve().name:
        names = f"its shards are named after {part.resolve().name}, not {out.resolve().name}"
        raise InputError(f"{part}: {names}; give every part, and the merged set, the same last folder name")


def _take(target: Notes, part: Notes) -> None:
    outline = part.outline
    assert outline is not None
    target.begin(outline)
    for shard in range(outline["shards"]):
        if target.is_finished(shard) or not part.note(shard).is_file():
            continue
        for name in (f"{part.stem(shard)}.tar", f"{part.stem(shard)}.idx"):
            if (part.out / name).is_file():
                _move(part.out / name, target.out / name)
        _move(part.note(shard), target.note(shard))  # last: with it the shard counts as finished


def _move(here: Path, there: Path) -> None:
    try:
        os.replace(here, there)
    except OSError:  # on another disk
        with atomic_write(there) as temporary:
            shutil.copyfile(here, temporary)
        here.unlink()


def index_in_place(found: Found, encoding: Encoding, limits: Limits = Limits()) -> Summary:  # noqa: B008 (frozen)
    """Make the folder of WebDataset tars a data set; the tars stay as they are.

    A video suits when it is a member `mp4` with the codec of `encoding`, yuv420p, frames at a steady rate (that of
    `encoding.fps`, where given), a short side and GOPs that are no longer than those of `encoding`, not turned, and
    every frame of it decodes. Raises InputError, and writes nothing, when one of them does not: the line names the row
    and why.
    """
    if found.layout != "webdataset":
        raise InputError(f"--in-place: the videos lie in files ({found.layout}), not in tars; leave it out")
    folder = _folder(found)
    members = [source.member for source in found.sources if source.member]
    twice = [key for key, count in Counter(member.key for member in members).items() if count > 1]
    if twice:
        raise InputError(f"--in-place: the key {twice[0]} is in the tars twice; {MAKE_ANEW}")
    contents: dict[Path, Contents] = {}
    for tar in sorted({source.path for source in found.sources}):
        contents[tar] = walk(tar)
        if contents[tar].problem:
            raise InputError(f"--in-place: {tar} {contents[tar].problem}; fetch it again, or {MAKE_ANEW}")
    rows: dict[Path, list[dict[str, Any]]] = {tar: [] for tar in contents}
    results = in_order(_facts, zip(found.sources, members, repeat(encoding), strict=False), **vars(limits))
    bar = tqdm(zip(found.sources, members, results, strict=True), folder.resolve().name, len(members))
    with closing(results), bar:
        for source, member, result in bar:
            key = member.key
            if isinstance(result, Reject):
                raise InputError(f"--in-place: {source.relative} does not suit: {result.detail}; {MAKE_ANEW}")
            label = -1 if source.label_name is None else found.classes.index(source.label_name)
            row = {"key": key, "shard": source.path.name, "source": source.relative, "label": label}
            row |= {"label_name": source.label_name, "split": source.split}
            rows[source.path].append(result | row | places(contents[source.path].samples[key]))
    shards = []
    for tar, some in rows.items():
        write_index(tar, contents[tar].samples.items())
        shards.append(Shard(tar.name, rows=some, **stamp(tar)))
    settings = {name: getattr(encoding, name) for name in ("codec", "short_side", "gop", "fps")}
    settings |= {"layout": found.layout, "in_place": True}
    info = publish(folder, found.classes, shards, settings, found.absent, name=folder.resolve().name)
    return Summary(info["rows"], sum(shard.bytes for shard in shards), info["rejected"])


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


def _facts(task: tuple[Source, Member, Encoding]) -> dict[str, Any] | Reject:
    """What the table says of a video, or why it does not suit."""
    source, member, encoding = task
    if wrong := problem(member.key, KEY, "its key"):
        return Reject("unsuited", wrong)
    if member.name != "mp4":
        return Reject("unsuited", f"it is a {member.name}, not an mp4")
    data = read_extent(source.path, Extent(member.offset, member.size))
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
            unlike = unlike_house(stream, rate, encoding, tally)
            if unlike or tally.unsound or tally.frames != indexed:
                sound = f"{tally.sound} of {indexed} frames decode soundly"
                return Reject(
                    "unsuited", unlike if unlike and not tally.error else f"{sound} {unlike}".strip()
                )
            facts = {"num_frames": tally.frames, "fps": float(rate), "width": stream.width}
            return facts | {"height": stream.height, "sha256": hashlib.sha256(data).hexdigest()}
    except (Rejected, DecodeError, av.FFmpegError, ValueError) as error:
        return Reject("unsuited", getattr(error, "detail", None) or str(error))
