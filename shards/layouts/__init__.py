"""Which videos a folder holds and what they are labelled: the layouts that video data sets come in.

A layout is a module with `read(listing, forced) → Found | None`: None when the folder is not of that layout. When it is
forced by --layout, what is missing raises InputError instead.
"""

from pathlib import Path
from typing import Literal, get_args

from shards.build.scan import Found, has_videos, list_files
from shards.errors import InputError
from shards.layouts import folders, hmdb51, kinetics, lists, oops, tars, ucf101

Layout = Literal["kinetics", "ucf101", "hmdb51", "oops", "list", "webdataset", "class-folders", "flat"]

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
    """The videos of `folder`, of WebDataset tars, or those that a text file lists, in the order of their relative paths.

    layout: one of READERS; recognised when None. annotations: a file, or a folder of them; when None, they
    are looked for in `folder`, then beside it. Raises InputError when there is nothing to try.
    """
    if layout in (None, "webdataset") and (found := _of_tars(folder, layout is not None)):
        return found
    if folder.is_file():
        if layout not in (None, "list"):
            raise InputError(f"{folder}: a file, not a folder; give a folder for --layout {layout}")
        return lists.read_file(folder)
    _check_annotations(annotations)
    listing = list_files(folder, annotations)
    if layout is not None:
        if layout not in READERS:
            raise InputError(f"--layout {layout}: not one of {', '.join(get_args(Layout))}")
        found = READERS[layout](listing, True)
        assert found is not None, layout
    else:
        found = next(one for one in (read(listing, False) for read in READERS.values()) if one is not None)
    if annotations is not None and found.layout in ("flat", "class-folders") and layout is None:
        raise InputError(
            f"--annotations {annotations}: lists none of the videos; give --layout, or another list"
        )
    if not found.sources:
        first = f" ({found.missing[0]})" if found.missing else ""
        raise InputError(f"{folder}: none of the videos that its annotations list{first} is there")
    found.unreadable.update(listing.unreadable)
    found.sources.sort(key=lambda source: source.relative)
    return found


def _of_tars(src: Path, forced: bool) -> Found | None:
    """The videos in tars; None where there are none, or, unless forced, files beside them that can be videos."""
    paths = tars.tars_of(src)
    if not paths:
        if forced:
            raise InputError(f"--layout webdataset: no tars at {src}; give a tar, a folder of tars, or a URL")
        return None
    if not forced and src.is_dir() and has_videos(src):
        return None
    return tars.read(src, paths)


def _check_annotations(given: Path | None) -> None:
    if given is not None and given.is_dir() and not any(path.is_file() for path in given.rglob("*")):
        raise InputError(f"--annotations {given}: an empty folder; leave it out, or give a list")
