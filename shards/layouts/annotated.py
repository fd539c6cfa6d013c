"""UCF101, HMDB51, Oops and Kinetics: videos in folders, and the annotation files that each of them was published with.

Kinetics-400, -600 and -700 come in class folders or flat, with the CSVs of DeepMind or CVDF, or without.
"""

import csv
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from shards.build.scan import SPLITS, Found, Listing, Source, class_name, stem, text_of
from shards.errors import InputError

_UCF101 = re.compile(r"v_(.+)_g\d+_c\d+")  # v_<class>_g<group>_c<clip>
_HMDB51_CODES = {"1": "train", "2": "test", "0": None}
# <youtube id>_<start>_<end>, seconds; some mirrors leave the times out
CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(\d+)_(\d+)")
ID = re.compile(r"[A-Za-z0-9_-]{11}")
SPLIT_NAMES = {long: short for long in SPLITS for short in ("train", "val", "test") if long.startswith(short)}


def _missing(listing: Listing, layout: str, file: str) -> InputError:
    place = f"in {listing.folder} or beside it"
    return InputError(f"--layout {layout}: no {file} {place}; give --annotations")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def read_ucf101(listing: Listing, forced: bool) -> Found | None:
    """Table split1, split2, split3 are "train" or "test"; labels are numbered as classInd.txt numbers them.

    Videos are found by their names, v_<class>_g<group>_c<clip>, wherever they lie and whatever their extension.
    """
    splits: defaultdict[str, dict[str, str]] = defaultdict(dict)
    names: dict[str, str] = {}  # as the lists spell them
    for path in listing.annotation_files(r"(train|test)list0?[123]\.txt"):
        kind, number = path.name[: path.name.index("list")], path.stem[-1]
        for line in _lines(path):
            # "Archery/v_Archery_g08_c01.avi 2" in the training lists, without the number in the test lists
            if match := re.match(rf"\s*(?:.+/)?({_UCF101.pattern})", line):
                splits[match[1].casefold()][f"split{number}"] = kind
                names[match[1].casefold()] = match[0].strip()
    there = {stem(path).casefold() for path in listing.videos}
    if not forced and not there & splits.keys():
        return None
    if not splits:
        raise _missing(listing, "ucf101", "trainlist01.txt")
    classes = _ucf101_classes(listing) or sorted({_ucf101_class(name) for name in names.values()})
    spelled = {name.casefold(): name for name in classes}
    sources, unlisted = [], []
    for path in listing.videos:
        key, relative = stem(path).casefold(), listing.relative(path)
        if key not in splits:
            unlisted.append(relative)
        label = _ucf101_class(names.get(key, stem(path)))
        # the lists, the folders and classInd.txt differ in case: HandStandPushups, HandstandPushups
        sources.append(Source(path, relative, spelled.get(label.casefold()), None, splits.get(key, {})))
    missing = [names[key] for key in sorted(splits.keys() - there)]
    return Found("ucf101", sources, classes, missing, unlisted)


def _ucf101_classes(listing: Listing) -> list[str]:
    for path in listing.annotation_files(r"classInd\.txt"):
        lines = [line.split() for line in _lines(path)]
        return [name for _, name in sorted((int(line[0]), line[1]) for line in lines if len(line) == 2)]
    return []


def _ucf101_class(name: str) -> str:
    match = _UCF101.search(name)
    return match[1] if match else ""


def read_hmdb51(listing: Listing, forced: bool) -> Found | None:
    """Table split1, split2, split3 are "train", "test", or null where the split leaves the video out."""
    splits: defaultdict[tuple[str, str], dict[str, str | None]] = defaultdict(dict)
    for path in listing.annotation_files(r".+_test_split[123]\.txt"):
        label, _, number = path.stem.rpartition("_test_split")
        for line in _lines(path):
            name, _, code = line.strip().rpartition(" ")
            if code in _HMDB51_CODES:
                splits[label, Path(name.strip()).stem][f"split{number}"] = _HMDB51_CODES[code]
    labels = defaultdict(list)
    for label, name in splits:
        labels[name].append(label)
    if not forced and not any(stem(path) in labels for path in listing.videos):
        return None
    if not splits:
        raise _missing(listing, "hmdb51", "*_test_split1.txt")
    sources, unlisted, there = [], [], set()
    for path in listing.videos:
        name, folder = stem(path), class_name(path.parent.name)
        # a name may stand in the files of two classes: then the folder decides
        known = [label for label in labels.get(name, []) if label == folder] or labels.get(name, [])[:1]
        key = (known[0] if known else folder, name)
        there.add(key)
        if not known:
            unlisted.append(listing.relative(path))
        unlabelled = not known and path.parent == listing.folder
        label_name = None if unlabelled else key[0]
        sources.append(Source(path, listing.relative(path), label_name, None, splits.get(key, {})))
    classes = sorted({label for label, _ in splits} | {one.label_name for one in sources if one.label_name})
    missing = [f"{label}/{name}" for label, name in sorted(splits.keys() - there)]
    return Found("hmdb51", sources, classes, missing, unlisted)


def read_oops(listing: Listing, forced: bool) -> Found | None:
    """Column failure_time: seconds, the median of what the annotators gave; null where most of them saw none."""
    files = listing.annotation_files(r"transition_times\.json")
    times = _failure_times(files[0]) if files else {}
    there = {stem(path) for path in listing.videos}
    if not forced and not there & times.keys():
        return None
    if not files:
        raise _missing(listing, "oops", "transition_times.json")
    sources, unlisted = [], []
    for path in listing.videos:
        split = next((name for name in listing.folders(path) if name in SPLITS), None)
        columns = {"failure_time": times.get(stem(path))}
        sources.append(Source(path, listing.relative(path), None, split, columns))
        if stem(path) not in times:
            unlisted.append(listing.relative(path))
    return Found("oops", sources, [], sorted(times.keys() - there), unlisted)


def _failure_times(path: Path) -> dict[str, float | None]:
    """Name → the annotators' seconds in order, the middle one (the later of two), as in the data set's code; None where
    it is -1, which says that there is no failure. Entries are lists, or objects with a list `t`."""
    try:
        entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = {name: one["t"] if isinstance(one, dict) else one for name, one in entries.items()}
        middle = {name: statistics.median_high(map(float, one)) for name, one in given.items() if len(one)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not name → list of seconds ({error!r}); fetch it again") from error
    return {name: middle[name] if middle.get(name, -1) >= 0 else None for name in given}


def read_kinetics(listing: Listing, forced: bool) -> Found | None:
    """Label and split from the CSVs (label,youtube_id,time_start,time_end,split), else from the folders.

    Class folders may spell a CSV's label with underscores or without quotes. Splits are train, val and test.
    """
    clips = [CLIP.fullmatch(stem(path)) for path in listing.videos]
    named_so = sum(clip is not None for clip in clips) * 2 >= len(clips)
    entries = _kinetics_entries(listing)
    by_id: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in entries:
        by_id[key[0]].append(key)

    def match_of(path: Path, clip: re.Match[str] | None) -> tuple[str, int] | None:
        if clip is not None:
            key = clip[1], int(clip[2])
            return key if key in entries else None
        same = by_id.get(stem(path), []) if ID.fullmatch(stem(path)) else []
        return same[0] if len(same) == 1 else None

    matches = list(map(match_of, listing.videos, clips))
    matched = sum(match is not None for match in matches)
    if not forced and not named_so and matched * 2 <= len(matches):
        return None
    if forced and not entries and not any(clips):
        found = f"no CSV with a column youtube_id in {listing.folder} or beside it, no <id>_<start>_<end>.mp4"
        raise InputError(f"--layout kinetics: {found}; give --annotations")
    if not matched and listing.annotations is None:
        entries = {}  # the CSVs beside it are another data set's
    labels = _folder_labels(listing)
    official = {label for label, _ in entries.values() if label is not None}
    spelled = _spellings(listing, labels, official)
    sources, unlisted = [], []
    for path, match, folder_label in zip(listing.videos, matches, labels, strict=True):
        label, split = entries[match] if match else (None, None)
        if entries and not match:
            unlisted.append(listing.relative(path))
        label = label or folder_label
        names = (SPLIT_NAMES[name] for name in listing.folders(path) if name in SPLIT_NAMES)
        split = split or next(names, None)
        sources.append(Source(path, listing.relative(path), spelled.get(label or "", label), split))
    classes = sorted(
        {one.label_name for one in sources if one.label_name is not None} | official | set(spelled.values())
    )
    absent = sorted(entries.keys() - {match for match in matches if match is not None})
    missing = [f"{entries[key][0] or ''}/{key[0]}_{key[1]:06d}".lstrip("/") for key in absent]
    return Found("kinetics", sources, classes, missing, unlisted)


def _kinetics_entries(listing: Listing) -> dict[tuple[str, int], tuple[str | None, str | None]]:
    """(youtube id, start in seconds) → label and split, from every CSV that has these columns."""
    entries: dict[tuple[str, int], tuple[str | None, str | None]] = {}
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
                before = entries.get(key, (None, None))
                split = SPLIT_NAMES.get(split, split) or named_split or before[1]
                entries[key] = label or before[0], split
    return entries


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
