"""What --data names, as a data set's folder: the demo set and folders of videos become one on first use."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

from shards import demo
from shards.atomic import lock_of, locked
from shards.build.scan import Listing, list_files
from shards.errors import InputError
from shards.remote import url_of
from shards.schema import DESCRIPTION, TABLE, safe_name
from shards.storage import cache_folder

# in two parts, since setup.py renames the commands that messages name
MAKE_SHARDS = (Path(__file__).parents[2] / "tools" / "make_shards").with_suffix(".py")


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
