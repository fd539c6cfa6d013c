"""Files that are there whole or not at all: written to a name beside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to the disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}{SUFFIX}")
    temporary.unlink(
        missing_ok=True
    )  # left by a killed process, or a link to a file that is not ours to write
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # the rename itself is on the disk only when the folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`. Only for the folder's one writer."""
    for stale in folder.glob(f".*{SUFFIX}"):
        stale.unlink(missing_ok=True)
