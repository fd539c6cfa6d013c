"""What --data names, as a data set's folder: the demo set and folders of videos become one on first use."""

import hashlib
import subprocess
import sys
from pathlib import Path

from shards import demo
from shards.atomic import lock_of, locked
from shards.build.scan import has_videos
from shards.errors import InputError
from shards.remote import url_of
from shards.schema import DESCRIPTION, TABLE, safe_name
from shards.storage import cache_folder

# in two parts, since setup.py renames the commands that messages name
MAKE_SHARDS = (Path(__file__).parents[2] / "tools" / "make_shards").with_suffix(".py")


def data_folder(data: Path | None) -> Path:
    """The demo set for None; for a folder of videos what make_shards makes of it; else `data` itself, whatever it is.

    A folder's data set lies in the cache folder, under a name that changes with any file in the folder: what is added there
    is not missed. Another process that asks meanwhile waits; one that is stopped goes on next time. Where no data set can
    be made, make_shards has said why, and SystemExit has its status. Raises InputError where the cache folder cannot be
    written to.
    """
    try:
        return demo.ensure() if data is None else _data_set_of(data)
    except OSError as error:
        advice = "set SLIPSTREAM_CACHE to a folder that can be written to, or make the data set with tools/make_shards.py"
        raise InputError(f"{error.filename or cache_folder()}: {error.strerror}; {advice}") from error


def _data_set_of(data: Path) -> Path:
    if url_of(data) or not data.is_dir() or (data / TABLE).exists() or (data / DESCRIPTION).exists():
        return data
    if not has_videos(data):
        return data
    out = cache_folder() / "videos" / f"{safe_name(data.resolve().name)}-{_digest(data)}"
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
            if made.returncode:
                raise SystemExit(made.returncode)
    return out


def _digest(folder: Path) -> str:
    """Of the folder's place and the names, sizes and times of all files below it."""
    found = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            found.update(
                f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode(
                    errors="surrogateescape"
                )
            )
    return found.hexdigest()[:12]
