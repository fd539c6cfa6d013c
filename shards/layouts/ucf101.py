"""UCF101: class folders, and the lists of three train/test splits."""

import re
from collections import defaultdict

from shards.build.scan import Found, Listing, Source, stem
from shards.errors import InputError

LISTS = r"(train|test)list0?[123]\.txt"


def read(listing: Listing, forced: bool) -> Found | None:
    """Table split1, split2, split3 are "train" or "test"; labels are numbered as classInd.txt numbers them.

    Videos are found by their names, v_<class>_g<group>_c<clip>, wherever they lie and whatever their extension.
    """
    lists = listing.annotation_files(LISTS)
    splits: defaultdict[str, dict[str, str]] = defaultdict(dict)
    names: dict[str, str] = {}  # as the lists spell them
    for path in lists:
        kind, number = path.name[: path.name.index("list")], path.stem[-1]
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            # "Archery/v_Archery_g08_c01.avi 2" in the training lists, without the number in the test lists
            if match := re.match(r"\s*(?:(.+)/)?(v_.+_g\d+_c\d+)", line):
                splits[match[2].casefold()][f"split{number}"] = kind
                names[match[2].casefold()] = match[0].strip()
    there = {stem(path).casefold() for path in listing.videos}
    if not forced and not there & splits.keys():
        return None
    if not splits:
        raise InputError(
            f"--layout ucf101: no trainlist01.txt in {listing.folder} or beside it; give --annotations"
        )
    classes = _classes(listing) or sorted({_class(name) for name in names.values()})
    spelled = {name.casefold(): name for name in classes}
    sources, unlisted = [], []
    for path in listing.videos:
        key, relative = stem(path).casefold(), listing.relative(path)
        if key not in splits:
            unlisted.append(relative)
        label = _class(names.get(key, stem(path)))
        # the lists, the folders and classInd.txt differ in case: HandStandPushups, HandstandPushups
        sources.append(Source(path, relative, spelled.get(label.casefold()), None, splits.get(key, {})))
    missing = [names[key] for key in sorted(splits.keys() - there)]
    return Found("ucf101", sources, classes, missing, unlisted)


def _classes(listing: Listing) -> list[str]:
    for path in listing.annotation_files(r"classInd\.txt"):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            line[1]
            for line in sorted((line for line in lines if len(line) == 2), key=lambda one: int(one[0]))
        ]
    return []


def _class(name: str) -> str:
    match = re.search(r"v_(.+)_g\d+_c\d+", name)
    return match[1] if match else ""
