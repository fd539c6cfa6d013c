"""A data set in the making: which videos go into which shard, and the notes that a restart goes by."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.atomic import WriterLock, lock_of, locked, sweep
from shards.build.process_video import Processing
from shards.build.scan import Found, Source
from shards.documents import SHA256, read_json, whole, write_json
from shards.errors import InputError
from shards.schema import DESCRIPTION, REJECTED, TAR, safe_name
from shards.tar import Shard
from shards.video.read import IO_ERROR

LONGEST_KEY = 72  # with a hash of 16 and an extension it fits the 100 bytes of a tar's name field
UNFINISHED = ".unfinished"  # notes on the finished shards, kept until all are
OUTLINE = "job.json"
_REJECT = {"source": str, "reason": str, "detail": str}
_OUTLINE = {
    "settings": {"layout": str},
    "classes": [str],
    "shards": whole(0, 2**32),
    "unlisted": [str],
    "absent": [_REJECT],
}
_SHARD = {"name": TAR, "bytes": whole(0), "sha256": SHA256, "rows": [dict]}
_NOTE = {
    "shard?": _SHARD,
    "rejected": [_REJECT],
}


def part_of(text: str) -> slice:
    """Which shards part "I/N" makes: every N-th, from the I-th. Raises InputError."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--part {text}: give I/N with I from 1 to N, such as 3/16")
    return slice(int(number) - 1, None, int(count))


@dataclass(frozen=True)
class Notes:
    """What a data set's folder says about an unfinished job: its outline, and a note for each finished shard."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out / UNFINISHED

    @property
    def outline(self) -> dict[str, Any] | None:
        """The settings, classes, number of shards and what is missing; None before the job began."""
        path = self.folder / OUTLINE
        return dict(read_json(path, _OUTLINE, f"remove {self.folder}")) if path.is_file() else None

    @contextmanager
    def locked(self, shards: Sequence[int] | None = None) -> Iterator[None]:
        """Be the only writer of some shards, or of the whole folder (None). Raises InputError when another one is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with closing(WriterLock(self.folder, f"--out {self.out}", shards)):
            yield

    def begin(self, outline: dict[str, Any]) -> None:
        """Write a job's outline. Raises InputError when the one there is of another job."""
        with locked(lock_of(self.folder / OUTLINE)):
            if there := self.outline:
                check_same(self.out, there["settings"], outline["settings"])
            else:
                sweep(self.folder)
                write_json(self.folder / OUTLINE, outline)

    def stem(self, shard: int) -> str:
        """The name of a shard's files, without their extensions."""
        return f"{safe_name(self.out.resolve().name)}-{shard:06d}"

    def note(self, shard: int) -> Path:
        return self.folder / f"{self.stem(shard)}.json"

    def scratch(self, shard: int) -> Path:
        """The folder of a shard's temporary files."""
        return self.folder / f"{self.stem(shard)}.scratch"

    def finish(self, shard: int, made: Shard | None, rejected: list[dict[str, str]]) -> None:
        """Note that a shard is done: its rows, or None when all of its videos were rejected, and the rejects."""
        write_json(self.note(shard), {"shard": asdict(made) if made else None, "rejected": rejected})

    def read(self, shard: int) -> dict[str, Any] | None:
        """The note of a finished shard; None where there is none."""
        path = self.note(shard)
        fix = "remove it: its shard is made again"
        return {"shard": None} | read_json(path, _NOTE, fix) if path.is_file() else None

    def unread(self, shard: int) -> list[str]:
        """Sources of a finished shard that the disk did not give."""
        note = self.read(shard)
        return [one["source"] for one in note["rejected"] if one["reason"] == IO_ERROR] if note else []

    def is_finished(self, shard: int) -> bool:
        """Whether a shard's note is there and its tar is as long as the note says."""
        note = self.read(shard)
        if note is None or note["shard"] is None:
            return note is not None
        tar = self.out / note["shard"]["name"]
        whole_tar = tar.is_file() and tar.stat().st_size == note["shard"]["bytes"]
        return whole_tar and tar.with_suffix(".idx").is_file()


@dataclass(frozen=True)
class Job:
    """Everything that decides what the shards will hold."""

    notes: Notes
    processing: Processing
    found: Found
    sources: list[Source]  # in the order of the shards
    keys: list[str]
    batches: list[range]  # the sources of each shard
    settings: dict[str, Any]  # of dataset.json; a restart must have the same

    def shards(self, part: slice | None) -> range:
        """The shards of a part, or all of them."""
        return range(len(self.batches))[part or slice(None)]

    def unfinished(self, part: slice | None) -> list[int]:
        again = self.unread
        return [one for one in self.shards(part) if one in again or not self.notes.is_finished(one)]

    def videos(self, shards: Sequence[int]) -> int:
        """How many videos some shards are made of."""
        return sum(len(self.batches[shard]) for shard in shards)

    @property
    def unread(self) -> set[int]:
        """Finished shards that lack a video which the disk did not give, and now gives."""
        paths = {source.relative: source.path for source in self.sources}
        return {
            shard
            for shard in range(len(self.batches))
            if any(_opens(paths.get(name)) for name in self.notes.unread(shard))
        }

    @contextmanager
    def locked(self, part: slice | None) -> Iterator[None]:
        """Be the only one to write a part of the job, or all of it (None), in a new folder or where it was cut off.

        Raises InputError when another process is at work on one of these shards, or the folder holds something
        else than this job.
        """
        notes, out = self.notes, self.notes.out
        if out.exists() and notes.outline is None:
            there = sorted(one.name for one in out.iterdir() if not one.name.startswith("."))
            if strangers := [name for name in there if name != REJECTED]:
                found = f"holds {strangers[0]} and no data set"
                raise InputError(f"--out {out}: {found}; give an empty or a new folder")
        with notes.locked(None if part is None else self.shards(part)):
            outline = {name: getattr(self.found, name) for name in ("unlisted", "absent", "classes")}
            notes.begin(outline | {"settings": self.settings, "shards": len(self.batches)})
            if self.unread:  # the tars change: until they have, this is no complete data set
                (out / DESCRIPTION).unlink(missing_ok=True)
            for shard in self.shards(part):
                shutil.rmtree(notes.scratch(shard), ignore_errors=True)
            yield


def keys(relatives: Sequence[str]) -> list[str]:
    """A unique key of [A-Za-z0-9_-] for each relative path: handshake/17_13_0.avi → handshake-17_13_0.

    Where several paths give the same key, each of them gets a hash of its path appended: the same whatever
    their order. Relative paths must differ.
    """
    plain = [_plain_key(relative) for relative in relatives]
    result = plain
    for digits in (8, 16):
        shared = {key for key, count in Counter(result).items() if count > 1}
        result = [
            f"{short}-{hashlib.sha256(relative.encode()).hexdigest()[:digits]}" if key in shared else key
            for key, short, relative in zip(result, plain, relatives, strict=True)
        ]
    return result


def check_same(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise InputError when `out` was made, or begun, with other settings or from other videos."""
    differing = [name for name in asked if there.get(name) != asked[name]]
    if "sources" in differing and set(differing) <= {"sources", "layout"}:
        other = f" or --layout ({there.get('layout')}, not {asked['layout']})" if len(differing) == 2 else ""
        raise InputError(f"--out {out}: holds a data set of other videos{other}; give another --out")
    if differing:
        # the stride is no flag: it follows from --for and --fps
        named = [name for name in differing if name not in ("sources", "layout", "stride")] or differing
        flags = {name: f"--{name.replace('_', '-')} {there.get(name)}" for name in named}
        found = ", ".join(f"{flag}, not {asked[name]}" for name, flag in flags.items())
        can_be_given = all(type(there.get(name)) in (int, float, str) for name in named)
        other = f"{' '.join(flags.values())} or another --out" if can_be_given else "another --out"
        raise InputError(f"--out {out}: holds a data set made with {found}; give {other}")


def _opens(path: Path | None) -> bool:
    try:
        with open(path or "", "rb") as handle:
            return bool(handle.read(1))
    except OSError:
        return False


def _plain_key(relative: str) -> str:
    folder, _, name = relative.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return safe_name(f"{folder}/{stem}".strip("/").replace("/", "-"))[:LONGEST_KEY] or "_"
