"""From finished shards to a data set: the table, the rejects and the description, written last."""

import shutil
from dataclasses import dataclass
from typing import Any

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
    return None if job.unread else summary_of(job.notes, len(job.found.unlisted))


def summary_of(notes: Notes, unlisted: int = 0) -> Summary:
    """The summary of a complete data set; notes that a kill left in it go."""
    _forget(notes)
    return _summary(read_description(notes.out), unlisted, already=True)


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
    made = [notes.read(shard) for shard in range(outline["shards"])]
    shards = [one["shard"] for one in made if one["shard"]]
    rejected = [reject for one in made for reject in one["rejected"]]
    missing = [_missing(name, outline["settings"]["layout"]) for name in outline["missing"]]
    missing += [
        {"source": name, "reason": "unreadable", "detail": why}
        for name, why in outline.get("unreadable", {}).items()
    ]
    sweep(notes.out)
    if not shards:
        write_json_lines(notes.out / REJECTED, rejected + missing)
        shutil.rmtree(notes.folder)
        first = "{source}, {reason}: {detail}".format(**rejected[0])
        found = f"none of {len(rejected)} files became a sample (the first: {first})"
        raise InputError(f"{notes.out}: {found}; see {notes.out / REJECTED} and give a folder of videos")
    if outline["unlisted"]:
        with atomic_write(notes.out / UNLISTED) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in outline["unlisted"]), encoding="utf-8")
    name = notes.out.resolve().name
    info = publish(notes.out, outline["classes"], shards, outline["settings"], rejected + missing, name=name)
    _forget(notes)
    return _summary(info, len(outline["unlisted"]))


def _forget(notes: Notes) -> None:
    """Remove the notes, unless the next call is to try again what the disk did not give."""
    outline = notes.outline
    if not any(notes.unread(shard) for shard in range(outline["shards"] if outline else 0)):
        shutil.rmtree(notes.folder, ignore_errors=True)


def _missing(name: str, layout: str) -> dict[str, str]:
    return {"source": name, "reason": "missing", "detail": f"in the annotations ({layout}), not on the disk"}


def _summary(info: dict[str, Any], unlisted: int, already: bool = False) -> Summary:
    size = sum(tar["bytes"] for tar in info["tars"].values())
    return Summary(info["rows"], size, info["rejected"], unlisted, already)
