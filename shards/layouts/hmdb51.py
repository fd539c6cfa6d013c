"""HMDB51: class folders, and for each class and split a file of names with the codes 1, 2 and 0."""

import re
from collections import defaultdict
from pathlib import Path

from shards.build.scan import Found, Listing, Source, class_name, stem
from shards.errors import InputError

LISTS = r".+_test_split[123]\.txt"
CODES = {"1": "train", "2": "test", "0": None}


def read(listing: Listing, forced: bool) -> Found | None:
    """Table split1, split2, split3 are "train", "test", or null where the split leaves the video out."""
    splits: defaultdict[tuple[str, str], dict[str, str | None]] = defaultdict(dict)
    for path in listing.annotation_files(LISTS):
        label, number = re.fullmatch(r"(.+)_test_split(\d)\.txt", path.name).groups()  # type: ignore[union-attr]
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, code = line.strip().rpartition(" ")
            if code in CODES:
                splits[label, Path(name.strip()).stem][f"split{number}"] = CODES[code]
    labels = defaultdict(list)
    for label, name in splits:
        labels[name].append(label)
    if not forced and not any(stem(path) in labels for path in listing.videos):
        return None
    if not splits:
        raise InputError(
            f"--layout hmdb51: no *_test_split1.txt in {listing.folder} or beside it; give --annotations"
        )
    sources, unlisted, there = [], [], set()
    for path in listing.videos:
        name, folder = stem(path), class_name(path.parent.name)
        # a name may stand in the files of two classes: then the folder decides
        known = [label for label in labels.get(name, []) if label == folder] or labels.get(name, [])[:1]
        key = (known[0] if known else folder, name)
        there.add(key)
        if not known:
            unlisted.append(listing.relative(path))
        label = known[0] if known else folder if path.parent != listing.folder else None
        sources.append(Source(path, listing.relative(path), label, None, splits.get(key, {})))
    classes = sorted({label for label, _ in splits} | {one.label_name for one in sources if one.label_name})
    missing = [f"{label}/{name}" for label, name in sorted(splits.keys() - there)]
    return Found("hmdb51", sources, classes, missing, unlisted)
