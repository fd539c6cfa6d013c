"""What lies in a folder of videos: the files to try, and the annotation files within it or beside it; and the data set
that --data names, which is made of such a folder on first use.
"""

import errno
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shards import demo
from shards.atomic import lock_of, locked
from shards.errors import InputError
from shards.remote import url_of
from shards.schema import DESCRIPTION, TABLE, safe_name
from shards.storage import cache_folder
from shards.video.read import IMAGE, images

# Left out by name: what lies beside videos. Anything else is tried, with or without an extension.
TEXT = r"txt|lst|list|csv|tsv|jsonl?|xml|ya?ml|toml|md|rst|html?|pdf|log|py|sh|ini|cfg|srt|vtt|ass"
IMAGES_AND_SOUND = r"jpe?g|png|bmp|tiff?|webp|svg|wav|mp3|flac"
DATA = r"npy|npz|mat|pkl|pickle|pt|pth|h5|parquet|db|zip|gz|bz2|xz|7z|rar|tar|tgz|idx|part|lock"
NOT_VIDEOS = re.compile(rf".*\.({TEXT}|{IMAGES_AND_SOUND}|{DATA})", re.IGNORECASE)
# Folders beside the videos where annotations are looked for: ucfTrainTestlist, testTrainMulti_7030_splits, …
ANNOTATION_FOLDER = re.compile(r".*(annot|split|list|label|csv).*", re.IGNORECASE)
# what is wrong with a file or folder itself
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
SPLITS = ("train", "training", "val", "valid", "validate", "validation", "test", "testing")
# in two parts, since setup.py renames the commands that messages name
MAKE_SHARDS = (Path(__file__).parents[2] / "tools" / "make_shards").with_suffix(".py")


class Member(NamedTuple):
    """A video in a WebDataset tar: the sample's key, the rest of the member's name, and where its data lies, bytes."""

    key: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Source:
    """One file to try. `relative` is its path below the folder, as text; None: no label, no split.

    columns: what the layout's annotations say beyond that: split1 … split3, failure_time. member: the video in
    the tar that `path` then is. group: videos of one group are never divided by --hold-out.
    """

    path: Path
    relative: str
    label_name: str | None = None
    split: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    member: Member | None = None
    group: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the video, or of the pictures that it is made of."""
        if self.member:
            return self.member.size
        files = images(self.path) if self.path.is_dir() else [self.path]
        return sum(path.stat().st_size for path in files)


@dataclass(frozen=True)
class Found:
    """The videos of a data set as its layout tells them.

    classes: names in the order of their labels. missing: what the annotations list and the disk has not.
    unlisted: relative paths of videos that the annotations do not list. They are kept, without a split,
    except where the list is what selects (layout `list`). unreadable: relative path → why, of folders, links and
    files that could not be looked at.
    """

    layout: str
    sources: list[Source]
    classes: list[str]
    missing: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def absent(self) -> list[dict[str, str]]:
        """The rejects that no job has to try: missing and unreadable ones."""
        why = f"in the annotations ({self.layout}), not on the disk"
        absent = [{"source": name, "reason": "missing", "detail": why} for name in self.missing]
        return absent + [
            {"source": name, "reason": "unreadable", "detail": why} for name, why in self.unreadable.items()
        ]


@dataclass(frozen=True)
class Listing:
    """The candidates below a folder and its other files, both in the order of their paths.

    unreadable: relative path → why, of folders that cannot be listed, links to nothing, pipes and devices.
    """

    folder: Path
    videos: list[Path]
    others: list[Path]
    annotations: Path | None = None
    unreadable: dict[str, str] = field(default_factory=dict)

    def relative(self, path: Path) -> str:
        """The path below the folder, as text that a table and JSON can hold."""
        below = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        return text_of(str(below))

    def folders(self, path: Path) -> list[str]:
        """Names of the folders between the folder and a file."""
        return [text_of(part) for part in path.relative_to(self.folder).parts[:-1]]

    def annotation_files(self, pattern: str) -> list[Path]:
        """Files whose whole name matches: those of --annotations, else within the folder, else beside it."""
        if self.annotations is not None:
            given = self.annotations
            there = [given] if given.is_file() else sorted(given.rglob("*"))
        elif within := [path for path in self.others if re.fullmatch(pattern, path.name)]:
            return within
        else:
            parent = self.folder.resolve().parent
            beside = [
                one for one in parent.iterdir() if one.is_dir() and ANNOTATION_FOLDER.fullmatch(one.name)
            ]
            there = [path for place in (parent, *sorted(beside)) for path in sorted(place.iterdir())]
        return [path for path in there if re.fullmatch(pattern, path.name) and path.is_file()]


def list_files(folder: Path, annotations: Path | None = None, *, frames: bool = False) -> Listing:
    """Everything below `folder` that is not hidden; links to folders are followed, each folder is listed once.

    frames: a folder below it that holds JPEGs or PNGs, and neither videos nor folders, is a video of its own.

    Raises InputError when the folder or the annotations are missing, or nothing can be a video.
    """
    advice = "give a folder of videos, or of class folders with videos in them"
    if annotations is not None and not annotations.exists():
        raise InputError(f"--annotations {annotations}: no such file or folder; leave it out or correct it")
    if annotations and annotations.is_dir() and not any(one.is_file() for one in annotations.rglob("*")):
        raise InputError(f"--annotations {annotations}: an empty folder; leave it out, or give a list")
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; {advice}, or a text list of them")
    videos: list[Path] = []
    others: list[Path] = []
    unreadable: dict[str, str] = {}
    seen = set()

    def note(path: Path, why: str) -> None:
        unreadable[text_of(os.path.relpath(path, folder))] = why

    def unlistable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(
                f"{folder}: {error.strerror}; give yourself the right to read it, or another folder"
            )
        if error.errno not in _OF_THE_FILE:  # the disk's trouble, not the folder's
            raise error
        note(Path(error.filename), f"the folder cannot be listed: {error.strerror}")

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unlistable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if frames and not folders and Path(parent) != folder:
            shown = [name for name in files if not name.startswith(".")]
            if any(map(IMAGE.fullmatch, shown)) and all(map(NOT_VIDEOS.fullmatch, shown)):
                videos.append(Path(parent))
                continue
        for name in files:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if why := _not_a_file(path):
                note(path, why)
            else:
                (others if NOT_VIDEOS.fullmatch(name) else videos).append(path)
    if not videos:
        found = f"{len(others)} files, none of which can be a video" if others else "no files"
        if any(IMAGE.fullmatch(one.name) for one in others) and not frames:
            advice += ", or --frames-fps 25 for folders of extracted frames, one a video"
        if unreadable:
            first = "{}: {}".format(*next(iter(unreadable.items())))
            found += f" ({len(unreadable)} unreadable; {first})"
        raise InputError(f"{folder}: {found}; {advice}")
    return Listing(folder, sorted(videos), sorted(others), annotations, dict(sorted(unreadable.items())))


def _not_a_file(path: Path) -> str:
    """Why a path is nothing to read from; "" for a file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"a link to {text_of(os.readlink(path))}: {error.strerror}"
        if error.errno not in _OF_THE_FILE:
            raise
        return error.strerror or str(error)
    return "" if stat.S_ISREG(mode) else "not a file: a pipe, socket or device"


def text_of(name: str) -> str:
    """A file name as UTF-8 text; bytes that are not are spelled \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def class_name(text: str) -> str:
    """A label as it is stored: composed Unicode (macOS decomposes file names), no blanks around it."""
    return unicodedata.normalize("NFC", text).strip() or text


def stem(path: Path) -> str:
    """A file's name without its extension, as text; annotations often have another extension, or none."""
    return text_of(path.name.rpartition(".")[0] or path.name)


def data_folder(data: Path | None) -> Path:
    """The demo set for None; for a folder of videos what make_shards makes of it; else `data` itself, whatever it is.

    A folder's data set lies in the cache folder, in a folder whose name changes with any file that make_shards looks at:
    what is added is not missed. Another process that asks meanwhile waits; one that is stopped goes on next time. Where no
    data set can be made, make_shards has said why, and SystemExit has its status. Raises InputError where the cache folder
    cannot be written to, the folder cannot be read, or a signal ended make_shards.
    """
    try:
        return demo.ensure() if data is None else _data_set_of(data)
    except OSError as error:
        advice = "set SLIPSTREAM_CACHE to a folder that can be written to, or make the data set with tools/make_shards.py"
        if data is not None and error.filename and Path(error.filename).is_relative_to(data):
            advice = "let nothing change there meanwhile, and give yourself the right to read it"
        raise InputError(f"{error.filename or cache_folder()}: {error.strerror}; {advice}") from error


def _data_set_of(data: Path) -> Path:
    if url_of(data) or not data.is_dir() or (data / TABLE).exists() or (data / DESCRIPTION).exists():
        return data
    try:
        found = list_files(data)
    except InputError:  # nothing can be a video: whoever opens it says what it lacks
        return data
    # its name is the folder's own also when files change: evaluations ask for it, what was seen in pretraining for instance
    out = cache_folder() / "videos" / _digest(found) / (safe_name(data.resolve().name) or "videos")
    if (out / DESCRIPTION).exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(out)):
        if not (out / DESCRIPTION).exists():
            print(f"{data} holds videos: a data set is made of them once, in {out}", file=sys.stderr)
            # a process of its own: its workers import its main module, which must not be one that trains
            made = subprocess.run(
                [sys.executable, MAKE_SHARDS, data, "--out", out], stdout=sys.stderr.fileno()
            )
            if made.returncode < 0:
                name = signal.Signals(-made.returncode).name
                raise InputError(f"{data}: {name} ended make_shards; the same command goes on from there")
            if made.returncode:
                raise SystemExit(made.returncode)
    return out


def _digest(found: Listing) -> str:
    """Of the folder's place and the names, sizes and times of the files that make_shards looks at."""
    digest = hashlib.sha256(str(found.folder.resolve()).encode(errors="surrogateescape"))
    for path in sorted([*found.videos, *found.others]):
        status = path.stat()
        name = f"{path.relative_to(found.folder)} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(name.encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]
