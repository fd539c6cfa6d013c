"""A text file that lists videos, `path label` a line; train.txt, val.txt and test.txt name the split."""

import re
from pathlib import Path

from shards.build.scan import SPLITS, Found, Listing, Source, class_name, text_of
from shards.errors import InputError

LISTS = r".*\.(txt|lst|list|csv|tsv)"


def read(listing: Listing, forced: bool) -> Found | None:
    """The lists given, or those at the top of the folder whose first line names a video in it."""
    files = listing.annotation_files(LISTS)
    if listing.annotations is None:
        files = [path for path in files if path.parent == listing.folder]
        files = [path for path in files if _first_line_is_a_video(path, listing)]
    if not files:
        if forced:
            raise InputError(
                f"--layout list: no list of its videos in {listing.folder}; give --annotations LIST.txt"
            )
        return None
    if not forced and listing.annotations is None and any(path.suffix in (".csv", ".tsv") for path in files):
        return None
    found = _read(files, listing.folder)
    listed = {source.path.resolve() for source in found.sources}
    found.unlisted.extend(listing.relative(path) for path in listing.videos if path.resolve() not in listed)
    return found


def read_file(path: Path) -> Found:
    """The videos that one list names."""
    found = _read([path], path.parent)
    if not found.sources:
        raise InputError(f"{path}: names no file that is there; paths are relative to {path.parent}")
    return found


def _read(files: list[Path], folder: Path) -> Found:
    sources: dict[Path, Source] = {}
    missing = []
    for file in files:
        split = file.stem.lower() if file.stem.lower() in SPLITS else None
        for line in _lines(file):
            name, label = _divided(line, file.suffix, (folder, file.parent))
            path = _there(name, (folder, file.parent))
            if path is None:
                missing.append(name)
                continue
            relative = text_of(str(path.relative_to(folder) if path.is_relative_to(folder) else path))
            sources.setdefault(path, Source(path, relative, class_name(label) if label else None, split))
    ordered = sorted(sources.values(), key=lambda source: source.relative)
    return Found("list", ordered, _classes(ordered), missing)


def _first_line_is_a_video(file: Path, listing: Listing) -> bool:
    places = (listing.folder, file.parent)
    lines = _lines(file)
    return bool(lines) and _there(_divided(lines[0], file.suffix, places)[0], places) in set(listing.videos)


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _divided(line: str, suffix: str, places: tuple[Path, ...]) -> tuple[str, str | None]:
    """A line's path and label. Either may hold blanks: the longest beginning that is a file is the path."""
    separator = "\t" if "\t" in line else "," if suffix == ".csv" else None
    if separator:
        name, _, label = line.partition(separator)
        return name.strip(), label.strip() or None
    if _there(line, places):
        return line, None
    blanks = [match.start() for match in re.finditer(r"\s", line)]
    for blank in reversed(blanks):
        if _there(line[:blank].rstrip(), places):
            return line[:blank].rstrip(), line[blank:].strip() or None
    name, _, label = line.rpartition(" ")
    return (name.strip(), label) if name else (line, None)


def _there(name: str, places: tuple[Path, ...]) -> Path | None:
    return next((place / name for place in places if name and (place / name).is_file()), None)


def _classes(sources: list[Source]) -> list[str]:
    """Numbers stay the labels' numbers, the ones between them too; names are sorted."""
    names = {source.label_name for source in sources if source.label_name is not None}
    if names and all(re.fullmatch(r"0|[1-9]\d{0,5}", name) for name in names):
        return [str(number) for number in range(max(map(int, names)) + 1)]
    return sorted(names)
