"""Class folders, with or without train and test folders above them, and flat folders without labels."""

from pathlib import Path

from shards.build.scan import SPLITS, Found, Listing, Source, class_name


def read(listing: Listing, forced: bool) -> Found:
    """DIR/class/…/file is labelled by its first folder; DIR/file is not labelled.

    When all first folders are named like splits (train, val, test, …), they are the splits and the second
    folder is the class.
    """
    firsts = {path.relative_to(listing.folder).parts[0] for path in listing.videos}
    has_splits = firsts <= set(SPLITS) and all((listing.folder / first).is_dir() for first in firsts)
    sources = [_source(listing, path, has_splits) for path in listing.videos]
    classes = sorted({source.label_name for source in sources if source.label_name is not None})
    return Found("class-folders", sources, classes)


def read_flat(listing: Listing, forced: bool) -> Found | None:
    """Videos without labels: all of them in one folder, or, when forced, wherever they lie."""
    if not forced and any(path.parent != listing.folder for path in listing.videos):
        return None
    return Found("flat", [Source(path, listing.relative(path)) for path in listing.videos], [])


def _source(listing: Listing, path: Path, has_splits: bool) -> Source:
    folders = listing.folders(path)
    split = folders.pop(0) if has_splits else None
    return Source(path, listing.relative(path), class_name(folders[0]) if folders else None, split)
