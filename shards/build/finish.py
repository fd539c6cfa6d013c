"""From finished shards to a data set: parts brought together; table, rejects and description, written last."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.atomic import atomic_write, sweep
from shards.build.job import Job, Notes, check_same
from shards.documents import write_json_lines
from shards.errors import InputError
from shards.schema import DESCRIPTION, REJECTED, read_description
from shards.table import publish

UNLISTED = "unlisted.txt"  # videos that the annotations do not list, a relative path a line


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
    shards = [note["shard"] for note in made if note["shard"]]
    rejected = [reject for note in made for reject in note["rejected"]]
    why = f"in the annotations ({outline['settings']['layout']}), not on the disk"
    absent_videos = [{"source": name, "reason": "missing", "detail": why} for name in outline["missing"]]
    absent_videos += [
        {"source": name, "reason": "unreadable", "detail": why}
        for name, why in outline.get("unreadable", {}).items()
    ]
    sweep(notes.out)
    if not shards:
        write_json_lines(notes.out / REJECTED, rejected + absent_videos)
        shutil.rmtree(notes.folder)
        first = "{source}, {reason}: {detail}".format(**rejected[0])
        found = f"none of {len(rejected)} files became a sample (the first: {first})"
        raise InputError(f"{notes.out}: {found}; see {notes.out / REJECTED} and give a folder of videos")
    if outline["unlisted"]:
        with atomic_write(notes.out / UNLISTED) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in outline["unlisted"]), encoding="utf-8")
    name = notes.out.resolve().name
    publish(notes.out, outline["classes"], shards, outline["settings"], rejected + absent_videos, name=name)
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
