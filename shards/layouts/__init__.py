"""Which videos a folder holds and what they are labelled: the layouts that video data sets come in.

A layout is a function `read(listing, forced) → Found | None`: None when the folder is not of that layout. When it is
forced by --layout, what is missing raises InputError instead.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from shards.build.scan import SPLITS, Found, Listing, Source, class_name, list_files
from shards.errors import InputError
from shards.layouts import annotated, lists, tars

Layout = Literal["kinetics", "ucf101", "hmdb51", "oops", "list", "webdataset", "class-folders", "flat"]


def read_flat(listing: Listing, forced: bool) -> Found | None:
    """Videos without labels: all of them in one folder, or, when forced, wherever they lie."""
    if not forced and any(path.parent != listing.folder for path in listing.videos):
        return None
    return Found("flat", [Source(path, listing.relative(path)) for path in listing.videos], [])


def read_class_folders(listing: Listing, forced: bool) -> Found:
    """DIR/class/…/file is labelled by its first folder; DIR/file is not labelled.

    When all first folders are named like splits (train, val, test, …), they are the splits and the second
    folder is the class.
    """
    firsts = {path.relative_to(listing.folder).parts[0] for path in listing.videos}
    has_splits = firsts <= set(SPLITS) and all((listing.folder / first).is_dir() for first in firsts)
    sources = []
    for path in listing.videos:
        folders = listing.folders(path)
        split = folders.pop(0) if has_splits else None
        label = class_name(folders[0]) if folders else None
        sources.append(Source(path, listing.relative(path), label, split))
    classes = sorted({source.label_name for source in sources if source.label_name is not None})
    return Found("class-folders", sources, classes)


# The order of trying: what has annotation files of its own first.
READERS = {
    "oops": annotated.read_oops,
    "ucf101": annotated.read_ucf101,
    "hmdb51": annotated.read_hmdb51,
    "kinetics": annotated.read_kinetics,
    "list": lists.read,
    "flat": read_flat,
    "class-folders": read_class_folders,
}


def find(
    folder: Path,
    layout: Layout | None = None,
    annotations: Path | None = None,
    *,
    frames: bool = False,
) -> Found:
    """The videos of a folder, of WebDataset tars, or those that a text file lists, in the order of their relative paths.

    layout: one of READERS; recognised when None. annotations: a file, or a folder of them; when None, they
    are looked for in `folder`, then beside it. frames: folders of extracted frames are videos too. Raises InputError when there is nothing to try.
    """
    if layout not in (None, *get_args(Layout)):
        raise InputError(f"--layout {layout}: not one of {', '.join(get_args(Layout))}")
    paths = tars.tars_of(folder) if layout in (None, "webdataset") else []
    if paths and (layout or not folder.is_dir()):
        return tars.read(folder, paths)
    if layout == "webdataset":
        raise InputError(f"--layout webdataset: no tars at {folder}; give a tar, a folder of tars, or a URL")
    if folder.is_file():
        if layout not in (None, "list"):
            raise InputError(f"{folder}: a file, not a folder; give a folder for --layout {layout}")
        return lists.read_file(folder)
    try:
        listing = list_files(folder, annotations, frames=frames)
    except InputError:  # no videos
        if frames or not paths:
            raise
        return tars.read(folder, paths)
    if layout is not None:
        found = READERS[layout](listing, True)
        assert found is not None, layout
    else:
        found = next(one for one in (read(listing, False) for read in READERS.values()) if one is not None)
        if annotations is not None and found.layout in ("flat", "class-folders"):
            raise InputError(
                f"--annotations {annotations}: lists none of the videos; give --layout, or another list"
            )
    if not found.sources:
        first = f" ({found.missing[0]})" if found.missing else ""
        raise InputError(f"{folder}: none of the videos that its annotations list{first} is there")
    found.unreadable.update(listing.unreadable)
    found.sources.sort(key=lambda source: source.relative)
    return found


def hold_out(found: Found, share: float) -> Found:
    """The same videos with split "test" for `share` of each class, rounded, and "train" for the others.

    Groups (a list's column `group`; else each video is its own) are never divided. They are taken in the order of the
    sha256 of their names, each if it brings the classes' numbers of test videos nearer to what is asked. So the split
    follows from the names, labels and groups alone: not from a seed, the order of a list or the other classes, as long
    as no group spans two of them.

    Raises InputError for a share outside (0, 1), a data set that has splits, or one too small to divide.
    """
    flag = f"--hold-out {share:g}"
    if not 0 < share < 1:
        raise InputError(f"{flag}: give a share above 0 and below 1")
    if any(one.split or any(name.startswith("split") for name in one.columns) for one in found.sources):
        names = sorted({one.split for one in found.sources if one.split}) or ["split1"]
        raise InputError(f"{flag}: the videos have splits already ({', '.join(names)}); leave it out")
    groups: defaultdict[str, list[Source]] = defaultdict(list)
    for source in found.sources:
        groups[f"group {source.group}" if source.group else source.relative].append(source)
    sizes = Counter(source.label_name for source in found.sources)
    wanted = {label: round(share * size) for label, size in sizes.items()}
    held: set[str] = set()
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        counts = Counter(source.label_name for source in groups[name])
        gain = sum(abs(wanted[one]) - abs(wanted[one] - count) for one, count in counts.items())
        if gain > 0:
            held.add(name)
            for label, count in counts.items():
                wanted[label] -= count
    if not held or len(held) == len(groups):
        raise InputError(f"{flag}: {len(groups)} videos or groups are too few to divide; give another share")
    test = {source.relative for name in held for source in groups[name]}
    sources = [replace(one, split="test" if one.relative in test else "train") for one in found.sources]
    return replace(found, sources=sources)
