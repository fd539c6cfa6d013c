"""Which videos a folder holds and what they are labelled: the layouts that video data sets come in.

A layout is a module with `read(listing, forced) → Found | None`: None when the folder is not of that layout. When it is
forced by --layout, what is missing raises InputError instead.
"""

from pathlib import Path
from typing import Literal, get_args

from shards.build.scan import Found, list_files
from shards.errors import InputError
from shards.layouts import folders, hmdb51, kinetics, lists, oops, ucf101

Layout = Literal["kinetics", "ucf101", "hmdb51", "oops", "list", "class-folders", "flat"]

# The order of trying: what has annotation files of its own first.
READERS = {
    "oops": oops.read,
    "ucf101": ucf101.read,
    "hmdb51": hmdb51.read,
    "kinetics": kinetics.read,
    "list": lists.read,
    "flat": folders.read_flat,
    "class-folders": folders.read,
}


def find(folder: Path, layout: Layout | None = None, annotations: Path | None = None) -> Found:
    """The videos of `folder`, or those that a text file lists, in the order of their relative paths.

    layout: one of READERS; recognised when None. annotations: a file, or a folder of them; when None, they
    are looked for in `folder`, then beside it. Raises InputError when there is nothing to try.
    """
    if folder.is_file():
        if layout not in (None, "list"):
            raise InputError(f"{folder}: a file, not a folder; give a folder for --layout {layout}")
        return lists.read_file(folder)
    listing = list_files(folder, annotations)
    if layout is not None:
        if layout not in READERS:
            raise InputError(f"--layout {layout}: not one of {', '.join(get_args(Layout))}")
        found = READERS[layout](listing, True)
        assert found is not None, layout
    else:
        found = next(one for one in (read(listing, False) for read in READERS.values()) if one is not None)
    if not found.sources:
        first = f" ({found.missing[0]})" if found.missing else ""
        raise InputError(f"{folder}: none of the videos that its annotations list{first} is there")
    found.unreadable.update(listing.unreadable)
    found.sources.sort(key=lambda source: source.relative)
    return found
