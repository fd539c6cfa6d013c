"""Which videos a folder holds, what they are labelled, and the key each gets."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError

# Left out by name: what lies beside videos. Anything else is tried, with or without an extension.
TEXT = r"txt|csv|tsv|jsonl?|xml|ya?ml|toml|md|rst|html?|pdf|log|py|sh|ini|cfg|srt|vtt|ass"
IMAGES_AND_SOUND = r"jpe?g|png|bmp|tiff?|webp|svg|wav|mp3|flac"
DATA = r"npy|npz|mat|pkl|pickle|pt|pth|h5|parquet|db|zip|gz|bz2|xz|7z|rar|tar|tgz|idx|part|lock"
NOT_VIDEOS = re.compile(rf".*\.({TEXT}|{IMAGES_AND_SOUND}|{DATA})", re.IGNORECASE)
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
LONGEST_KEY = 72  # with a hash of 16 and an extension it fits the 100 bytes of a tar's name field


@dataclass(frozen=True)
class Source:
    """One file to try. `relative` is its path below the folder, as text; None: no label, no split."""

    path: Path
    relative: str
    label_name: str | None = None
    split: str | None = None


def find(folder: Path) -> list[Source]:
    """Every candidate below `folder`, in the order of its relative path.

    DIR/class/…/file is labelled by its first folder; DIR/file is not labelled. When all first folders are
    named like splits (train, val, test, …), they are the splits and the second folder is the class.
    Raises InputError when the folder is missing or holds no candidate.
    """
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(
            f"{folder}: {what}; give a folder of videos, or of class folders with videos in them"
        )
    paths = []
    skipped = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or not path.is_file():
                continue
            if NOT_VIDEOS.fullmatch(name):
                skipped += 1
            else:
                paths.append(path)
    if not paths:
        seen = f"{skipped} files, none of which can be a video" if skipped else "no files"
        raise InputError(
            f"{folder}: {seen}; give a folder of videos, or of class folders with videos in them"
        )
    firsts = {path.relative_to(folder).parts[0] for path in paths}
    has_splits = firsts <= set(SPLITS) and all((folder / first).is_dir() for first in firsts)
    found = [_source(folder, path, has_splits) for path in paths]
    return sorted(found, key=lambda source: source.relative)


def _source(folder: Path, path: Path, has_splits: bool) -> Source:
    relative = path.relative_to(folder)
    folders = [_text(part) for part in relative.parts[:-1]]
    split = folders.pop(0) if has_splits else None
    return Source(path, _text(str(relative)), folders[0] if folders else None, split)


def _text(name: str) -> str:
    # a name that is not UTF-8 still needs a spelling that a table and JSON can hold
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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


def safe_name(text: str) -> str:
    """`text` with everything but [A-Za-z0-9_-] replaced by an underscore."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def _plain_key(relative: str) -> str:
    folder, _, name = relative.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return safe_name(f"{folder}/{stem}".strip("/").replace("/", "-"))[:LONGEST_KEY] or "_"
