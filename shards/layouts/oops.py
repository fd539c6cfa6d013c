"""Oops: fails with the moment of the failure, in train and val folders."""

import json
import statistics
from pathlib import Path
from typing import Any

from shards.build.scan import SPLITS, Found, Listing, Source, stem
from shards.errors import InputError


def read(listing: Listing, forced: bool) -> Found | None:
    """Column failure_time: seconds, the median of what the annotators gave; null where none of them saw one."""
    files = listing.annotation_files(r"transition_times\.json")
    if not files:
        if forced:
            place = f"in {listing.folder} or beside it"
            raise InputError(f"--layout oops: no transition_times.json {place}; give --annotations")
        return None
    times = _times(files[0])
    there = {stem(path) for path in listing.videos}
    if not forced and not there & times.keys():
        return None
    sources, unlisted = [], []
    for path in listing.videos:
        split = next((name for name in listing.folders(path) if name in SPLITS), None)
        columns = {"failure_time": times.get(stem(path))}
        sources.append(Source(path, listing.relative(path), None, split, columns))
        if stem(path) not in times:
            unlisted.append(listing.relative(path))
    return Found("oops", sources, [], sorted(times.keys() - there), unlisted)


def _times(path: Path) -> dict[str, float | None]:
    """Name → median of the annotators' seconds; entries are lists, or objects with a list `t`; -1: not seen."""
    try:
        entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = {name: one["t"] if isinstance(one, dict) else one for name, one in entries.items()}
        seen = {name: [float(time) for time in one if time >= 0] for name, one in given.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not name → list of seconds ({error!r}); fetch it again") from error
    return {name: statistics.median(one) if one else None for name, one in seen.items()}
