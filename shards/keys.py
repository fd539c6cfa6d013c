"""The name of a sample in its tar."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

LONGEST_KEY = 72  # with a hash of 16 and an extension it fits the 100 bytes of a tar's name field


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
