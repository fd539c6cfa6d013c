"""quarantine.jsonl: the rows that cannot be used, one {key, reason} a line; new selections leave them out."""

import json
import logging
import os
from pathlib import Path

from shards.documents import parse, read_bytes
from shards.errors import InputError
from shards.schema import QUARANTINE

_ENTRY = {"key": str, "reason?": str}
_log = logging.getLogger(__name__)


def note(folder: Path, key: str, reason: str) -> None:
    """Append a line. A folder that cannot be written to is worth a warning, not an end."""
    line = json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n"
    try:
        # one write of one line in append mode: ranks that share the folder do not mix theirs
        # not through a link: a data set from elsewhere could append what it likes to a file of the user's
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(folder / QUARANTINE, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # by a full disk, or amid another's write
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" * cut + line).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.warning("%s: %s is not noted (%s): %s", folder / QUARANTINE, key, error.strerror, reason)


def noted(folder: Path) -> set[str]:
    """The keys noted so far."""
    return {key for key, _ in entries(folder / QUARANTINE)}


def entries(path: Path) -> list[tuple[str, str]]:
    """(key, reason) of each line; lines that say something else are left out with a warning."""
    found: list[tuple[str, str]] = []
    if not path.is_file():
        return found
    for number, line in enumerate(read_bytes(path, "remove it").split(b"\n"), 1):
        if not line:  # two wrote at once, and one took the other's line for cut off
            continue
        try:
            one = parse(line, _ENTRY, path, "")
            found.append((one["key"], one.get("reason") or ""))
        except InputError:
            _log.warning("%s: line %d is not {key, reason}, left out", path, number)
    return found
