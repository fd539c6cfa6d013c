"""A text file that lists videos: CSV or TSV with or without a header, or `path label` a line."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from shards.build.scan import SPLITS, Found, Listing, Source, class_name, text_of
from shards.errors import InputError

LISTS = r".*\.(txt|lst|list|csv|tsv)"
NAMES = {  # a header's columns, in lower case
    "path": {"path", "file", "filename", "file_name", "filepath", "file_path", "video", "video_path", "clip"},
    "label": {"label", "label_name", "class", "class_name", "category", "action"},
    "split": {"split", "subset", "set"},
    "group": {"group", "subject", "source_video"},
}
HEADER = "name the columns in a first line, such as path,label,split"


class _Row(NamedTuple):
    number: int  # of its line, from 1
    name: str
    label: str | None = None
    split: str | None = None
    group: str | None = None


def read(listing: Listing, forced: bool) -> Found | None:
    """The lists given, or those at the top of the folder whose first row names a video in it."""
    given = listing.annotations
    files = [given] if given and given.is_file() else listing.annotation_files(LISTS)
    if given is None:
        files = [one for one in files if one.parent == listing.folder and _names_a_video(one, listing)]
    if not files:
        if forced:
            raise InputError(
                f"--layout list: no list of its videos in {listing.folder}; give --annotations LIST.txt"
            )
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
        places = (folder, file.parent)
        named = file.stem.lower() if file.stem.lower() in SPLITS else None
        for row in _rows(file, places):
            path = _there(row.name, places)
            if path is None:
                missing.append(text_of(row.name) or f"{file.name}, line {row.number}: no path")
                continue
            relative = text_of(str(path.relative_to(folder) if path.is_relative_to(folder) else path))
            label = class_name(row.label) if row.label else None
            source = Source(path, relative, label, row.split or named, group=row.group)
            before = sources.setdefault(path, source)
            if before != source:
                found = f"line {row.number} lists {relative} again, with another label, split or group"
                raise InputError(f"{file}: {found}; keep one of the two lines")
    ordered = sorted(sources.values(), key=lambda source: source.relative)
    return Found("list", ordered, numbered_or_sorted(one.label_name for one in ordered), missing)


def _names_a_video(file: Path, listing: Listing) -> bool:
    places = (listing.folder, file.parent)
    try:
        first = next(_rows(file, places), None)
    except InputError:
        return False
    return first is not None and _there(first.name, places) in set(listing.videos)


def _rows(file: Path, places: tuple[Path, ...]) -> Iterator[_Row]:
    """The rows of a list. Raises InputError for a file that is no text, or whose columns cannot be told."""
    raw = file.read_bytes()
    if b"\0" in raw[:4096]:
        raise InputError(
            f"{file}: not a text list; give a folder of videos, or a text file of `path label` lines"
        )
    lines = raw.decode("utf-8-sig", "surrogateescape").splitlines()
    head = next((line for line in lines if line.strip()), "")
    for separator in "\t,; ":
        columns = _header(next(csv.reader([head], delimiter=separator)), places)
        if columns:
            break
    else:
        for number, line in enumerate(map(str.strip, lines), 1):
            row = _divided(line, number, file, places) if line else None
            if row and (not line.startswith("#") or _there(row.name, places)):
                yield row
        return
    if "path" not in columns:
        raise InputError(f"{file}: its header has no column path (or file, video, clip); {HEADER}")
    table = csv.reader(lines[lines.index(head) + 1 :], delimiter=separator, skipinitialspace=True)
    for cells in table:
        if any(cell.strip() for cell in cells):
            got = {name: cells[i].strip() or None for name, i in columns.items() if i < len(cells)}
            name = got.pop("path", None) or ""
            yield _Row(lines.index(head) + 1 + table.line_num, name, **got)


def _header(cells: list[str], places: tuple[Path, ...]) -> dict[str, int]:
    """What the columns hold → their numbers; empty where the first line is no header but a row."""
    words = [cell.strip().lower() for cell in cells]
    known = {
        name: i for name, all_names in NAMES.items() for i, word in enumerate(words) if word in all_names
    }
    is_row = any(_there(cell.strip(), places) for cell in cells) or len(known) < min(2, len(cells))
    return {} if is_row else known


def _divided(line: str, number: int, file: Path, places: tuple[Path, ...]) -> _Row:
    """A row without header: path, label where there is one, split where there is one.

    Names and labels may hold blanks and commas: what begins the line and is a file is the path.
    """
    for separator in "\t,;":
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        cells = [cell.strip() for cell in cells]
        if len(cells) > 1 and (_there(cells[0], places) or separator == "\t"):
            return _columns(cells, number, file)
    if line.startswith('"'):
        name, *rest = next(csv.reader([line], delimiter=" ", skipinitialspace=True))
        return _labelled(name, " ".join(rest), number)
    if _there(line, places):
        return _Row(number, line)
    for blank in reversed([match.start() for match in re.finditer(r"\s", line)]):
        if _there(line[:blank].rstrip(), places):
            return _labelled(line[:blank].rstrip(), line[blank:], number)
    if file.suffix.lower() == ".csv" and "," in line and not line.startswith("#"):
        return _columns([cell.strip() for cell in next(csv.reader([line]))], number, file)
    name, _, label = line.rpartition(" ")
    return _labelled(name, label, number) if name else _Row(number, line)


def _columns(cells: list[str], number: int, file: Path) -> _Row:
    name, label, *more = cells
    if more and (len(more) > 1 or more[0].lower() not in SPLITS):
        raise InputError(f"{file}: line {number} has {len(cells)} columns; {HEADER}")
    return _Row(number, name, label or None, more[0] if more else None)


def _labelled(name: str, label: str, number: int) -> _Row:
    """VideoMAE's lists for pretraining end in `0 -1` (first frame, number of frames): no label."""
    label = label.strip()
    return _Row(number, name.strip(), None if re.fullmatch(r"(0\s+)?-1", label) else label or None)


def _there(name: str, places: tuple[Path, ...]) -> Path | None:
    try:
        return next((place / name for place in places if name and (place / name).is_file()), None)
    except (OSError, ValueError):  # longer than a name can be
        return None


def numbered_or_sorted(labels: Iterable[str | None]) -> list[str]:
    """The classes of some labels: numbers stay the labels' numbers, the ones between them too; names are sorted."""
    names = {label for label in labels if label is not None}
    if names and all(re.fullmatch(r"0|[1-9]\d{0,5}", name) for name in names):
        return [str(number) for number in range(max(map(int, names)) + 1)]
    return sorted(names)
