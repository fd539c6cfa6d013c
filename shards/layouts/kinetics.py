"""Kinetics-400, -600, -700: class folders or flat, with the CSVs of DeepMind or CVDF, or without."""

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from shards.build.scan import SPLITS, Found, Listing, Source, class_name, stem, text_of
from shards.errors import InputError

# <youtube id>_<start>_<end>, seconds; some mirrors leave the times out
CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(\d+)_(\d+)")
ID = re.compile(r"[A-Za-z0-9_-]{11}")
SPLIT_NAMES = {name: name[:5] if name.startswith("train") else name[:3] for name in SPLITS}
SPLIT_NAMES |= {name: "test" for name in SPLITS if name.startswith("test")}


class _Entry(NamedTuple):
    label: str | None = None
    split: str | None = None


def read(listing: Listing, forced: bool) -> Found | None:
    """Label and split from the CSVs (label,youtube_id,time_start,time_end,split), else from the folders.

    Class folders may spell a CSV's label with underscores or without quotes. Splits are train, val and test.
    """
    clips = [CLIP.fullmatch(stem(path)) for path in listing.videos]
    named_so = sum(clip is not None for clip in clips) * 2 >= len(clips)
    entries = _entries(listing)
    by_id: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in entries:
        by_id[key[0]].append(key)
    matches = [_match(path, clip, entries, by_id) for path, clip in zip(listing.videos, clips, strict=True)]
    matched = sum(match is not None for match in matches)
    if not forced and not named_so and matched * 2 <= len(matches):
        return None
    if forced and not entries and not any(clips):
        found = f"no CSV with a column youtube_id in {listing.folder} or beside it, no <id>_<start>_<end>.mp4"
        raise InputError(f"--layout kinetics: {found}; give --annotations")
    if not matched and listing.annotations is None:
        entries = {}  # the CSVs beside it are another data set's
    labels = _folder_labels(listing)
    official = {one.label for one in entries.values() if one.label is not None}
    spelled = _spellings(listing, labels, official)
    sources, unlisted = [], []
    for path, match, folder_label in zip(listing.videos, matches, labels, strict=True):
        entry = entries[match] if match else _Entry()
        if entries and not match:
            unlisted.append(listing.relative(path))
        label = entry.label or folder_label
        names = (SPLIT_NAMES[name] for name in listing.folders(path) if name in SPLIT_NAMES)
        split = entry.split or next(names, None)
        sources.append(Source(path, listing.relative(path), spelled.get(label or "", label), split))
    classes = sorted(
        {one.label_name for one in sources if one.label_name is not None} | official | set(spelled.values())
    )
    absent = sorted(entries.keys() - {match for match in matches if match is not None})
    missing = [f"{entries[key].label or ''}/{key[0]}_{key[1]:06d}".lstrip("/") for key in absent]
    return Found("kinetics", sources, classes, missing, unlisted)


def _entries(listing: Listing) -> dict[tuple[str, int], _Entry]:
    """(youtube id, start in seconds) → label and split, from every CSV that has these columns."""
    entries: dict[tuple[str, int], _Entry] = {}
    for path in listing.annotation_files(r".*\.csv"):
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            if not {"youtube_id", "time_start"} <= set(reader.fieldnames or ()):
                continue
            named_split = SPLIT_NAMES.get(re.split(r"[^a-z]", path.stem.lower())[-1])
            for number, row in enumerate(reader, 2):
                try:
                    key = row["youtube_id"], int(float(row["time_start"]))
                except (TypeError, ValueError):
                    message = f"line {number} has no time_start; correct or remove the line"
                    raise InputError(f"{path}: {message}") from None
                split = (row.get("split") or "").strip()
                label = class_name(row["label"]) if row.get("label") else None
                before = entries.get(key, _Entry())
                entries[key] = _Entry(
                    label or before.label, SPLIT_NAMES.get(split, split) or named_split or before.split
                )
    return entries


def _match(
    path: Path,
    clip: re.Match[str] | None,
    entries: dict[tuple[str, int], _Entry],
    by_id: dict[str, list[tuple[str, int]]],
) -> tuple[str, int] | None:
    if clip is not None:
        key = clip[1], int(clip[2])
        return key if key in entries else None
    same = by_id.get(stem(path), []) if ID.fullmatch(stem(path)) else []
    return same[0] if len(same) == 1 else None


def _folder_labels(listing: Listing) -> list[str | None]:
    """Each video's folder, unless it is a split's, or the one folder that all the videos of a set lie in."""
    folders = [[one for one in listing.folders(path) if one not in SPLITS] for path in listing.videos]
    names = [class_name(some[-1]) if some else None for some in folders]
    return names if len(set(names)) > 1 else [None] * len(names)


def _spellings(listing: Listing, labels: list[str | None], official: set[str]) -> dict[str, str]:
    """Folder's label → the label it stands for: the CSV's that it resembles, or the first folder's that it does.

    Folders that lie beside each other are never one class, however alike ("C" and "C++"), nor does a folder stand for
    either of two labels that are alike: then each keeps the name it has.
    """
    alike: defaultdict[str, set[str]] = defaultdict(set)
    beside: defaultdict[tuple[Path, str], set[str]] = defaultdict(set)
    for path, label in zip(listing.videos, labels, strict=True):
        if label is not None:
            alike[_loose(label)].add(label)
            folder = next(one for one in path.parents if class_name(text_of(one.name)) == label)
            beside[folder.parent, _loose(label)].add(label)
    for label in official:
        alike[_loose(label)].add(label)
    distinct = {loose for (_, loose), names in beside.items() if len(names) > 1}
    spelled: dict[str, str] = {}
    for loose, names in alike.items():
        known = sorted(names & official)
        if loose not in distinct and len(known) < 2:
            spelled |= dict.fromkeys(names, (known or sorted(names))[0])
    return spelled


def _loose(label: str | None) -> str:
    """What is left of a label when a mirror has made a folder name of it."""
    return re.sub(r"[\W_]", "", label or "").casefold()
