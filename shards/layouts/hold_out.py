"""A test split for data sets that come without one: a share of each class, by a hash of the names."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace

from shards.build.scan import Found, Source
from shards.errors import InputError


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
